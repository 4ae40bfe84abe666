#include "store/layer_block.h"

#include "core/error.h"

namespace moe {
namespace {

// A tensor in a block's storage, whose address may move until all tensors are in.
struct Stored {
  int64_t offset = -1;  // -1: the layer has no such tensor
  TensorShape shape;

  TensorView view(const std::vector<std::byte>& storage) const {
    if (offset < 0) return {};
    return {storage.data() + offset, shape.dtype, shape.shape};
  }
};

// Appends the tensor `id`, 64-byte aligned relative to the beginning.
Result<Stored> append(const WeightSource& source, const WeightId& id,
                      std::vector<std::byte>& storage) {
  const Result<TensorShape> shape = source.describe(id);
  if (!shape.ok()) {
    if (shape.status().code() == StatusCode::not_found) return Stored{};
    return shape.status();
  }
  const size_t offset = (storage.size() + 63) / 64 * 64;
  const auto bits =
      static_cast<size_t>(shape->shape.elements()) * static_cast<size_t>(bits_of(shape->dtype));
  storage.resize(offset + (bits + 7) / 8);
  MOE_RETURN_IF_ERROR(
      source.read(id, MutableTensorView(storage.data() + offset, shape->dtype, shape->shape)));
  return Stored{static_cast<int64_t>(offset), *shape};
}

}  // namespace

Result<std::shared_ptr<LayerBlock>> load_layer_block(const WeightSource& source, int32_t layer,
                                                     const std::byte* shared) {
  auto block = std::make_shared<LayerBlock>();
  block->version = 1;
  block->shared = shared;
  struct Part {
    WeightKind kind;
    TensorView* view;
    Stored stored;
  };
  RouterWeights& router = block->router;
  Part parts[] = {{WeightKind::router_weight, &router.weight, {}},
                  {WeightKind::router_bias, &router.logit_bias, {}},
                  {WeightKind::router_selection_bias, &router.selection_bias, {}},
                  {WeightKind::router_per_expert_scale, &router.per_expert_scale, {}},
                  {WeightKind::router_input_scale, &router.input_scale, {}},
                  {WeightKind::router_token_experts, &router.token_experts, {}},
                  {WeightKind::shared_gate, &block->shared_gate, {}}};
  for (Part& part : parts) {
    auto stored = append(source, {layer, part.kind}, block->storage);
    if (!stored.ok())
      return stored.status().at({.file = source.name(), .layer = layer, .phase = Phase::load});
    part.stored = *stored;
  }
  for (const Part& part : parts) *part.view = part.stored.view(block->storage);
  return block;
}

}  // namespace moe
