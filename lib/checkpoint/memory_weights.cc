// Views of weights that the host holds.
#include <cstring>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "checkpoint/layer_set.h"
#include "core/error.h"
#include "moe/weights.h"
#include "quant/formats.h"
#include "quant/half.h"
#include "quant/roles.h"

namespace moe {
namespace {

using Key = std::tuple<int32_t, WeightKind, int32_t>;

Key key_of(const WeightId& id) {
  return {id.layer, id.kind, is_expert_kind(id.kind) ? id.expert : kSharedExpert};
}

Place place_of(const WeightId& id) { return {.layer = id.layer, .expert = id.expert}; }

// Shape of the tensor that plays `role` for a matrix of shape `matrix`; rank 0: the format has
// none.
Dims role_shape(const Format& format, Role role, const Dims& matrix) {
  if (role == Role::other) return matrix;
  if (!is_quantised(format.kind)) return role == Role::matrix ? matrix : Dims();
  switch (role) {
    case Role::matrix: return value_shape(format, matrix[0], matrix[1]);
    case Role::scale: return scale_shape(format, matrix[0], matrix[1]);
    case Role::zero: return format.zero_points ? scale_shape(format, matrix[0], matrix[1]) : Dims();
    default: return format.act_order ? Dims{matrix[1]} : Dims();
  }
}

DType float_type_of(FormatKind kind) {
  return kind == FormatKind::f32 ? DType::f32 : kind == FormatKind::f16 ? DType::f16 : DType::bf16;
}

// The one type that a tensor of the format must have; none for those that may be any float.
std::optional<DType> wanted_type(const Format& format, Role role) {
  switch (role) {
    case Role::other: return std::nullopt;
    case Role::matrix:
      return is_quantised(format.kind) ? value_type(format) : float_type_of(format.kind);
    case Role::scale: return format.scale;
    case Role::zero: return zero_type(format);
    default: return DType::i32;
  }
}

Status check_type(const WeightId& id, const Format& format, DType got) {
  if (const auto wanted = wanted_type(format, role_of(id.kind))) {
    if (got == *wanted) return {};
    return invalid_argument(place_of(id), "{} is {}, but format {} of the layer's spec wants {}",
                            to_string(id.kind), to_string(got), format_name(format),
                            to_string(*wanted));
  }
  const bool table = id.kind == WeightKind::router_token_experts;
  if (table ? got == DType::i32 || got == DType::i64 : is_float(got) && got != DType::f64)
    return {};
  return invalid_argument(place_of(id), "{} is {}, wanted {}", to_string(id.kind), to_string(got),
                          table ? "i32 or i64" : "f32, bf16 or f16");
}

Status check_shape(const WeightId& id, const Dims& wanted, const TensorView& view) {
  bool equal = wanted.rank == view.shape.rank && view.strides.rank == wanted.rank;
  for (int axis = 0; equal && axis < wanted.rank; ++axis)
    equal =
        wanted[axis] == view.shape[axis] || (wanted[axis] == kAnyExtent && view.shape[axis] >= 1);
  if (!equal)
    return invalid_argument(place_of(id), "{} has shape {}, but the layer's spec wants {}",
                            to_string(id.kind), shape_text(view.shape), shape_text(wanted));
  if (view.device.kind != DeviceKind::cpu)
    return error(StatusCode::unimplemented, place_of(id),
                 "{} is on a device; MemoryWeights holds views of CPU memory", to_string(id.kind));
  if (!view.data) return invalid_argument(place_of(id), "{} is null", to_string(id.kind));
  return {};
}

// Element by element, as opaque values of their size.
void copy(const TensorView& from, const MutableTensorView& to) {
  const size_t size = static_cast<size_t>(bits_of(from.dtype)) / 8;
  const bool matrix = from.shape.rank == 2;
  const int64_t rows = matrix ? from.shape[0] : 1;
  const int inner = from.shape.rank - 1;
  const int64_t columns = from.shape[inner];
  for (int64_t r = 0; r < rows; ++r) {
    const char* source =
        static_cast<const char*>(from.data) + (matrix ? r * from.strides[0] : 0) * int64_t(size);
    char* target = static_cast<char*>(to.data) + (matrix ? r * to.strides[0] : 0) * int64_t(size);
    if (from.strides[inner] == 1 && to.strides[inner] == 1) {
      std::memcpy(target, source, static_cast<size_t>(columns) * size);
      continue;
    }
    for (int64_t c = 0; c < columns; ++c)
      std::memcpy(target + c * to.strides[inner] * int64_t(size),
                  source + c * from.strides[inner] * int64_t(size), size);
  }
}

}  // namespace

struct MemoryWeights::Impl {
  std::vector<LayerSpec> layers;
  std::map<Key, TensorView> views;

  const LayerSpec* find(int32_t layer) const {
    for (const LayerSpec& spec : layers)
      if (spec.layer == layer) return &spec;
    return nullptr;
  }

  Result<TensorView> view(const WeightId& id) const {
    const auto found = views.find(key_of(id));
    if (found == views.end())
      return error(StatusCode::not_found, place_of(id), "layer {} has no {}{}", id.layer,
                   to_string(id.kind), is_expert_kind(id.kind) ? " of that expert" : "");
    return found->second;
  }
};

MemoryWeights::MemoryWeights(std::vector<LayerSpec> layers)
    : impl_(std::make_unique<Impl>(Impl{std::move(layers), {}})) {}
MemoryWeights::~MemoryWeights() = default;

Status MemoryWeights::set(const WeightId& id, const TensorView& view) {
  return guarded(place_of(id), [&]() -> Status {
    const LayerSpec* spec = impl_->find(id.layer);
    if (!spec)
      return error(StatusCode::not_found, place_of(id), "layer {} is not one of the {} layers",
                   id.layer, impl_->layers.size());
    const bool shared = is_expert_kind(id.kind) && id.expert == kSharedExpert;
    if (shared && !spec->shared)
      return invalid_argument(place_of(id), "layer {} has no shared expert", id.layer);
    if (is_expert_kind(id.kind) && !shared &&
        (id.expert < 0 || id.expert >= spec->router.num_experts))
      return invalid_argument(place_of(id), "expert {} is not one of 0 to {}", id.expert,
                              spec->router.num_experts - 1);
    const Format& format = shared ? spec->shared->expert.format : spec->expert.format;
    const Owner owner = shared ? Owner::shared : Owner::routed;
    Dims wanted = canonical_shape(*spec, {matrix_of(id.kind), owner});
    if (is_expert_kind(id.kind)) {
      if (Status status = check_format(format); !status.ok()) return status.at(place_of(id));
      wanted = role_shape(format, role_of(id.kind), wanted);
    }
    if (wanted.rank == 0)
      return invalid_argument(place_of(id), "format {} has no {}", format_name(format),
                              to_string(id.kind));
    MOE_RETURN_IF_ERROR(check_type(id, format, view.dtype));
    MOE_RETURN_IF_ERROR(check_shape(id, wanted, view));
    impl_->views.insert_or_assign(key_of(id), view);
    return {};
  });
}

const std::vector<LayerSpec>& MemoryWeights::layers() const noexcept { return impl_->layers; }

Result<TensorShape> MemoryWeights::describe(const WeightId& id) const {
  MOE_ASSIGN_OR_RETURN(TensorShape shape, impl_->view(id));
  shape.strides = row_major(shape.shape);
  return shape;
}

Status MemoryWeights::read(const WeightId& id, const MutableTensorView& out) const {
  MOE_ASSIGN_OR_RETURN(const TensorView view, impl_->view(id));
  MOE_RETURN_IF_ERROR(check_target(id, view, out));
  copy(view, out);
  return {};
}

std::string_view MemoryWeights::name() const noexcept { return "weights in the host's memory"; }

}  // namespace moe
