// Finds the tensors of packed modules (AWQ, GPTQ, compressed-tensors): words, scales, zero points
// and group indices in place of a matrix, and whether all are there.
#pragma once

#include <optional>
#include <string>

#include "checkpoint/layer_tensors.h"
#include "checkpoint/quantized.h"
#include "checkpoint/tensor_directory.h"
#include "core/error.h"

namespace moe {

// One per checkpoint; layers in any order, one at a time.
class PackedRules {
 public:
  // Both must outlive this.
  PackedRules(const TensorDirectory& directory, const std::optional<QuantScheme>& scheme)
      : directory_(directory), scheme_(scheme) {}

  void begin_layer() { scales_[0] = scales_[1] = nullptr; }

  // The words in place of the matrix that `rule` calls `name`; null if there are none, or if
  // config.json does not say that there may be. Writes the name that they would have to `packed`.
  const Checkpoint::Tensor* find(const TensorRule& rule, std::string_view name,
                                 std::string* packed) const;

  // Sets the owner's format in the spec. `words` are those of the matrix that `part` names, of
  // expert `expert`. invalid_argument if a tensor that belongs to it is missing, of a wrong type or
  // shape, or unlike those of other experts; unimplemented for sizes that cannot be packed.
  Status check(const Part& part, int32_t expert, const Checkpoint::Tensor& words, Place place,
               LayerTensors* tensors);

 private:
  using Tensor = Checkpoint::Tensor;
  struct Wanted;

  Status check_one(const Wanted& wanted, const Tensor& words, Place place, const Tensor** found);
  Status check_scales(Owner owner, const Tensor& scales, const Place& place);

  const TensorDirectory& directory_;
  const std::optional<QuantScheme>& scheme_;
  const Tensor* scales_[2] = {};  // of the layer's routed and shared experts
};

}  // namespace moe
