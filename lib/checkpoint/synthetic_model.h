// The layers of a synthetic model, with the first of each family's names, and its elements.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/layer_set.h"
#include "moe/checkpoint.h"

namespace moe {

// One tensor that a synthetic checkpoint stores.
struct SyntheticTensor {
  std::string name;
  DType dtype = DType::bf16;
  Dims shape;
  uint64_t key = 0;  // of synthetic_value()
  float scale = 1;   // value = offset + scale * synthetic_value()
  float offset = 0;
  int32_t modulo = 0;  // integers below this instead, if above 0

  int64_t bytes() const { return shape.elements() * bits_of(dtype) / 8; }
};

struct SyntheticModel {
  SyntheticSpec spec;
  std::string config;  // text of config.json
  LayerSet layers;
};

Result<SyntheticModel> synthetic_model(const SyntheticSpec& spec);

// The stored tensor behind a rule of a layer; `expert` counts where there is one per expert.
SyntheticTensor synthetic_tensor(const SyntheticModel& model, const LayerTensors& layer,
                                 const Part& part, int32_t expert);

// Every tensor in the order of the layers.
std::vector<SyntheticTensor> synthetic_tensors(const SyntheticModel& model);

// Elements [first, first + count) as stored.
void fill_synthetic(const SyntheticTensor& tensor, int64_t first, int64_t count, void* out);

}  // namespace moe
