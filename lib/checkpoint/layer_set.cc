#include "checkpoint/layer_set.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "quant/formats.h"

namespace moe {
namespace {

Place place_of(const WeightId& id) { return {.layer = id.layer, .expert = id.expert}; }

}  // namespace

LayerSet::LayerSet(std::vector<LayerTensors> layers) : layers_(std::move(layers)) {
  specs_.reserve(layers_.size());
  for (const LayerTensors& layer : layers_) specs_.push_back(layer.spec());
}

Result<LayerSet::Found> LayerSet::find(const WeightId& id) const {
  const auto layer = std::lower_bound(
      layers_.begin(), layers_.end(), id.layer,
      [](const LayerTensors& tensors, int32_t index) { return tensors.spec().layer < index; });
  if (layer == layers_.end() || layer->spec().layer != id.layer)
    return error(StatusCode::not_found, place_of(id),
                 "layer {} is not a MoE layer; there are {} of them, from {} to {}", id.layer,
                 layers_.size(), layers_.empty() ? -1 : specs_.front().layer,
                 layers_.empty() ? -1 : specs_.back().layer);
  const bool of_expert = is_expert_kind(id.kind);
  const bool shared = of_expert && id.expert == kSharedExpert;
  const Part part{id.kind, shared ? Owner::shared : Owner::routed};
  if (!layer->has(part))
    return error(StatusCode::not_found, place_of(id), "layer {} has no {}{}", id.layer,
                 to_string(id.kind), shared ? " of a shared expert" : "");
  const int32_t experts = layer->spec().router.num_experts;
  if (of_expert && !shared && (id.expert < 0 || id.expert >= experts))
    return error(StatusCode::not_found, place_of(id), "expert {} of layer {} is not one of 0 to {}",
                 id.expert, id.layer, experts - 1);
  Found found{&*layer, layer->slice(part, id.expert), {}};
  layer->name(part, id.expert, &found.name);
  return found;
}

DType LayerSet::Found::zeros() const {
  switch (layer->spec().expert.format.kind) {
    case FormatKind::f32: return DType::f32;
    case FormatKind::f16: return DType::f16;
    default: return DType::bf16;
  }
}

void write_zeros(const MutableTensorView& out) {
  const int64_t size = bits_of(out.dtype) / 8;
  const int64_t columns = out.shape.rank > 1 ? out.shape[1] : 1;
  const int64_t step = out.shape.rank > 1 ? out.strides[1] : 0;
  for (int64_t row = 0; row < out.shape[0]; ++row)
    for (int64_t column = 0; column < columns; ++column)
      std::memset(static_cast<char*>(out.data) + (row * out.strides[0] + column * step) * size, 0,
                  static_cast<size_t>(size));
}

TensorShape stored_shape(const TensorSlice& slice, DType dtype, const Dims& stored) {
  const Format& format = slice.packed.format;
  if (slice.packed.packing != Packing::none)
    dtype = slice.role == Role::zero ? zero_type(format) : value_type(format);
  TensorShape shape{.dtype = dtype, .shape = slice.shape, .strides = {}, .device = {}};
  if (shape.shape[0] == kAnyExtent) shape.shape[0] = stored[0];
  shape.strides = row_major(shape.shape);
  return shape;
}

Status check_target(const WeightId& id, const TensorShape& wanted, const MutableTensorView& out) {
  if (out.device.kind != DeviceKind::cpu)
    return invalid_argument(place_of(id), "{} can be read into CPU memory only",
                            to_string(id.kind));
  if (out.dtype != wanted.dtype)
    return invalid_argument(place_of(id), "{} is {}, but the output is {}", to_string(id.kind),
                            to_string(wanted.dtype), to_string(out.dtype));
  if (!(out.shape == wanted.shape) || out.strides.rank != out.shape.rank)
    return invalid_argument(place_of(id), "the output's shape is not that of {}; see describe()",
                            to_string(id.kind));
  if (!out.data && wanted.shape.elements() > 0)
    return invalid_argument(place_of(id), "the output for {} is null", to_string(id.kind));
  return {};
}

}  // namespace moe
