// Rows on their way through one layer, and what came out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe/model.h"

namespace moe::cli {

struct Batch {
  std::string name;
  int64_t rows = 0;
  int64_t hidden_size = 0;
  DType dtype = DType::f32;
  std::vector<std::byte> hidden;   // (rows, hidden_size)
  std::vector<int64_t> token_ids;  // (rows) for layers that look experts up, else empty

  std::vector<std::byte> out;  // like hidden
  int32_t top_k = 0;
  std::vector<int32_t> ids;     // (rows, top_k)
  std::vector<float> weights;   // (rows, top_k)
  std::vector<int64_t> ids_64;  // `ids`, as files have them
  ForwardReport report;

  TensorView hidden_view() const { return {hidden.data(), dtype, {rows, hidden_size}}; }
  TensorView out_view() const { return {out.data(), dtype, {rows, hidden_size}}; }
  Routing routing() { return {rows, top_k, ids.data(), weights.data()}; }
};

// Normally distributed rows of type `dtype`, and token ids where `layer` of `source` needs them.
Batch random_batch(const WeightSource& source, const LayerSpec& layer, int64_t rows, uint64_t seed,
                   DType dtype = DType::f32);

// Fills everything below `token_ids`.
Status forward(Model& model, const LayerSpec& layer, Batch& batch);

}  // namespace moe::cli
