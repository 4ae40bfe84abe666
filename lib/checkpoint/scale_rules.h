// Finds the scales of matrices that are quantised an element a byte (fp8, int8): their names, their
// layout, and whether all are there.
#pragma once

#include <optional>

#include "checkpoint/layer_tensors.h"
#include "checkpoint/quantized.h"
#include "checkpoint/tensor_directory.h"
#include "core/error.h"

namespace moe {

// One per checkpoint; layers in any order, one at a time.
class ScaleRules {
 public:
  // Both must outlive this. `scheme` is what config.json says.
  ScaleRules(const TensorDirectory& directory, const std::optional<QuantScheme>& scheme)
      : directory_(directory), scheme_(scheme) {}

  void begin_layer() { first_[0] = first_[1] = nullptr; }

  // Sets the owner's format in the spec, and where its scales are. invalid_argument if those of
  // `matrix`, which `part` names, are missing, of a wrong shape, or unlike those of other experts;
  // unimplemented for a type that scales cannot have, or if config.json says nothing of them.
  Status check(const Part& part, const Checkpoint::Tensor& matrix, const Place& place,
               LayerTensors* tensors);

 private:
  using Tensor = Checkpoint::Tensor;

  bool described(DType type) const;
  const Tensor* find(const Tensor& matrix, std::string_view* suffix) const;
  Status check_alike(Owner owner, const Tensor& scale, const StoredQuant& stored,
                     const Place& place, const LayerTensors& tensors);
  Status check_more(const Tensor& matrix, std::string_view suffix, const Dims& shape, DType type,
                    bool required, const Place& place);

  const TensorDirectory& directory_;
  const std::optional<QuantScheme>& scheme_;
  const Tensor* first_[2] = {};  // scale of the layer's routed and shared experts
};

}  // namespace moe
