// The MoE layers of one weight source, found by index.
#pragma once

#include <vector>

#include "checkpoint/layer_tensors.h"

namespace moe {

class LayerSet {
 public:
  LayerSet() = default;
  // Ascending in LayerSpec::layer.
  explicit LayerSet(std::vector<LayerTensors> layers);

  const std::vector<LayerTensors>& layers() const { return layers_; }
  const std::vector<LayerSpec>& specs() const { return specs_; }

  struct Found {
    const LayerTensors* layer = nullptr;
    TensorSlice slice;
    std::string name;     // of the stored tensor; empty: zeros
    DType zeros() const;  // type of such zeros
  };
  // not_found, with what there is, if the layer has no such tensor.
  Result<Found> find(const WeightId& id) const;

 private:
  std::vector<LayerTensors> layers_;
  std::vector<LayerSpec> specs_;
};

// The canonical tensor's type and dense shape; `stored` settles what the slice leaves open.
TensorShape stored_shape(const TensorSlice& slice, DType dtype, const Dims& stored);

// Fills `out` with zeros.
void write_zeros(const MutableTensorView& out);

// ok if `out` is memory of this shape and type on the CPU.
Status check_target(const WeightId& id, const TensorShape& wanted, const MutableTensorView& out);

}  // namespace moe
