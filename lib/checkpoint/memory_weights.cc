// Views of weights that the host holds.
#include <cstring>
#include <map>
#include <tuple>
#include <utility>

#include "checkpoint/layer_set.h"
#include "core/error.h"
#include "moe/weights.h"
#include "quant/half.h"

namespace moe {
namespace {

using Key = std::tuple<int32_t, WeightKind, int32_t>;

Key key_of(const WeightId& id) {
  return {id.layer, id.kind, is_expert_kind(id.kind) ? id.expert : kSharedExpert};
}

Place place_of(const WeightId& id) { return {.layer = id.layer, .expert = id.expert}; }

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Shape of the scales of a (rows, columns) matrix.
Dims scale_shape(const Format& format, int64_t rows, int64_t columns) {
  const int64_t group = format.group > 0 ? format.group : columns;
  switch (format.kind) {
    case FormatKind::fp8_block: return {divide_up(rows, group), divide_up(columns, group)};
    case FormatKind::int8:
    case FormatKind::int4: return {rows, divide_up(columns, group)};
    case FormatKind::mxfp4: return {rows, divide_up(columns, 32)};
    case FormatKind::nvfp4: return {rows, divide_up(columns, 16)};
    default: return {};
  }
}

// A 4-bit matrix keeps two inputs in a byte.
Dims matrix_shape(const Format& format, int64_t rows, int64_t columns) {
  const bool packed = format.kind == FormatKind::int4 || format.kind == FormatKind::mxfp4 ||
                      format.kind == FormatKind::nvfp4;
  return {rows, packed ? divide_up(columns, 2) : columns};
}

DType matrix_type(const Format& format) {
  switch (format.kind) {
    case FormatKind::f32: return DType::f32;
    case FormatKind::f16: return DType::f16;
    case FormatKind::bf16: return DType::bf16;
    case FormatKind::fp8_block: return DType::f8_e4m3;
    case FormatKind::int8: return DType::i8;
    default: return DType::u8;
  }
}

// The matrix that a scale belongs to.
WeightKind matrix_of(WeightKind kind) {
  switch (kind) {
    case WeightKind::gate_scale: return WeightKind::gate;
    case WeightKind::up_scale: return WeightKind::up;
    case WeightKind::down_scale: return WeightKind::down;
    default: return kind;
  }
}

bool is_matrix(WeightKind kind) { return kind >= WeightKind::gate && kind <= WeightKind::down; }
bool is_scale(WeightKind kind) { return kind >= WeightKind::gate_scale; }

Status check_type(const WeightId& id, const Format& format, DType got) {
  if (is_matrix(id.kind)) {
    const DType wanted = matrix_type(format);
    if (got == wanted) return {};
    return invalid_argument(place_of(id), "{} is {}, but format {} of the layer's spec wants {}",
                            to_string(id.kind), to_string(got), to_string(format.kind),
                            to_string(wanted));
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
    if (is_matrix(id.kind)) wanted = matrix_shape(format, wanted[0], wanted[1]);
    if (is_scale(id.kind)) wanted = scale_shape(format, wanted[0], wanted[1]);
    if (wanted.rank == 0)
      return invalid_argument(place_of(id), "format {} has no {}", to_string(format.kind),
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
