// One expert of a checkpoint, quantised: as canonical tensors and as stored ones.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "checkpoint/layer_tensors.h"
#include "moe/weights.h"
#include "quant/formats.h"
#include "quant/packed.h"

namespace moe {

// gate, up or down of an expert that is to be packed.
struct NewMatrix {
  WeightKind kind;
  std::string module;  // its name without ".weight"
  PackedMatrix packed;
};

struct NewExpert {
  const LayerTensors* layer;
  Owner owner;
  int32_t index;  // kSharedExpert for Owner::shared
  std::vector<NewMatrix> matrices;

  const ExpertSpec& spec() const {
    return owner == Owner::shared ? layer->spec().shared->expert : layer->spec().expert;
  }
};

// What is stored of a matrix.
enum class NewPart { words, scales, extents };

class QuantisedExpert {
 public:
  // `expert` must outlive it. `spec` is the layer's with the expert's new format.
  QuantisedExpert(const LayerSpec& spec, const NewExpert& expert, const Format& format)
      : expert_(expert), format_(format), weights_({spec}) {}

  // Reads the expert from `source`, and quantises it.
  Status make(const WeightSource& source);

  // Canonical tensors, biases too; they point into this object.
  const WeightSource& weights() const { return weights_; }

  // Relative Frobenius norm of what quantising changed in all matrices together.
  double error() const;

  // The bytes of a stored tensor of matrix `i`.
  void store(size_t i, NewPart part, std::string* out) const;

 private:
  void add_error(const std::vector<float>& values, const QuantMatrix& matrix);
  Status set(const WeightId& id, size_t i);
  Status set_biases(const WeightSource& source, int32_t layer);

  const NewExpert& expert_;
  const Format format_;
  MemoryWeights weights_;
  std::vector<QuantBuffer> buffers_;
  std::vector<std::vector<char>> scales_, biases_;
  double difference_ = 0, norm_ = 0;
};

}  // namespace moe
