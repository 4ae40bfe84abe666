// A synthetic model as a WeightSource: elements are computed when they are read.
#include "checkpoint/generated.h"
#include "checkpoint/read_slice.h"
#include "checkpoint/synthetic_model.h"
#include "core/error.h"
#include "moe/checkpoint.h"

namespace moe {
namespace {

class SyntheticWeights final : public WeightSource, public GeneratedWeights {
 public:
  explicit SyntheticWeights(SyntheticModel model)
      : model_(std::move(model)), name_("synthetic " + std::string(model_.spec.family)) {}

  const std::vector<LayerSpec>& layers() const noexcept override { return model_.layers.specs(); }
  std::string_view name() const noexcept override { return name_; }

  Result<TensorShape> describe(const WeightId& id) const override {
    return guarded({.layer = id.layer}, [&]() -> Result<TensorShape> {
      MOE_ASSIGN_OR_RETURN(const LayerSet::Found found, model_.layers.find(id));
      return shape_of(found, tensor_of(found, id));
    });
  }

  Status read(const WeightId& id, const MutableTensorView& out) const override {
    return guarded({.layer = id.layer, .phase = Phase::load}, [&]() -> Status {
      MOE_ASSIGN_OR_RETURN(const LayerSet::Found found, model_.layers.find(id));
      const SyntheticTensor tensor = tensor_of(found, id);
      MOE_RETURN_IF_ERROR(check_target(id, shape_of(found, tensor), out));
      if (found.name.empty()) return write_zeros(out), Status();
      const int64_t size = bits_of(tensor.dtype) / 8;
      const auto fill = [&](int64_t offset, int64_t bytes, void* to) {
        fill_synthetic(tensor, offset / size, bytes / size, to);
        return Status();
      };
      return read_slice(found.slice, fill, out);
    });
  }

  Result<GeneratedTensor> generated(const WeightId& id) const override {
    return guarded({.layer = id.layer}, [&]() -> Result<GeneratedTensor> {
      MOE_ASSIGN_OR_RETURN(const LayerSet::Found found, model_.layers.find(id));
      if (found.name.empty()) return GeneratedTensor{};
      const SyntheticTensor tensor = tensor_of(found, id);
      const TensorSlice& slice = found.slice;
      return GeneratedTensor{tensor.key,     tensor.scale,      tensor.offset, slice.base,
                             slice.row_step, slice.column_step, tensor.dtype};
    });
  }

 private:
  SyntheticTensor tensor_of(const LayerSet::Found& found, const WeightId& id) const {
    const Owner owner = found.slice.rule->owner;
    return synthetic_tensor(model_, *found.layer, {id.kind, owner}, id.expert);
  }

  static TensorShape shape_of(const LayerSet::Found& found, const SyntheticTensor& tensor) {
    return stored_shape(found.slice, tensor.dtype, tensor.shape);
  }

  SyntheticModel model_;
  std::string name_;
};

}  // namespace

Result<std::unique_ptr<WeightSource>> make_synthetic(const SyntheticSpec& spec) {
  return guarded({}, [&]() -> Result<std::unique_ptr<WeightSource>> {
    MOE_ASSIGN_OR_RETURN(SyntheticModel model, synthetic_model(spec));
    return std::unique_ptr<WeightSource>(std::make_unique<SyntheticWeights>(std::move(model)));
  });
}

}  // namespace moe
