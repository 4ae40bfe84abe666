#include "gemm/read_matrix.h"

#include <cmath>

#include "core/error.h"
#include "gemm/reference.h"
#include "quant/half.h"
#include "quant/roles.h"

namespace moe {
namespace {

Place place_of(const WeightSource& source, const WeightId& id) {
  return {.file = source.name(),
          .tensor = to_string(id.kind),
          .layer = id.layer,
          .expert = id.expert,
          .phase = Phase::load};
}

WeightId of(const WeightId& matrix, Role role) {
  return {matrix.layer, companion(matrix.kind, role), matrix.expert};
}

// Reads a tensor that must have this type and shape into `out`.
template <class T>
Status read_exactly(const WeightSource& source, const WeightId& id, DType type, const Dims& shape,
                    std::vector<T>* out) {
  MOE_ASSIGN_OR_RETURN(const TensorShape stored, source.describe(id));
  if (stored.shape != shape || stored.dtype != type)
    return invalid_argument(
        place_of(source, id), "{} is [{}] {}; wanted [{}] {}", to_string(id.kind),
        fmt::join(stored.shape.extent, stored.shape.extent + stored.shape.rank, ", "),
        to_string(stored.dtype), fmt::join(shape.extent, shape.extent + shape.rank, ", "),
        to_string(type));
  const int64_t bytes = shape.elements() * (bits_of(type) / 8);
  out->resize(static_cast<size_t>(bytes) / sizeof(T));
  return source.read(id, MutableTensorView(out->data(), type, shape));
}

Result<QuantBuffer> read_as_stored(const WeightSource& source, const WeightId& id,
                                   const Format& format, int64_t outputs, int64_t inputs) {
  if (Status status = check_format(format); !status.ok()) return status.at(place_of(source, id));
  QuantBuffer out(format, outputs, inputs);
  MOE_RETURN_IF_ERROR(read_exactly(source, id, value_type(format),
                                   value_shape(format, outputs, inputs), &out.values));
  const Dims shape = scale_shape(format, outputs, inputs);
  std::vector<std::byte> scales;
  MOE_RETURN_IF_ERROR(read_exactly(source, of(id, Role::scale), format.scale, shape, &scales));
  load_row(format.scale, scales.data(), 1, shape.elements(), out.scales.data());
  if (format.zero_points)
    MOE_RETURN_IF_ERROR(
        read_exactly(source, of(id, Role::zero), zero_type(format), shape, &out.zeros));
  if (format.act_order)
    MOE_RETURN_IF_ERROR(
        read_exactly(source, of(id, Role::group), DType::i32, {inputs}, &out.groups));
  if (Status status = check_matrix(out.view()); !status.ok())
    return status.at(place_of(source, id));
  return out;
}

}  // namespace

Format source_format(const WeightSource& source, int32_t layer, int32_t expert) {
  for (const LayerSpec& spec : source.layers())
    if (spec.layer == layer)
      return expert == kSharedExpert && spec.shared ? spec.shared->expert.format
                                                    : spec.expert.format;
  return {};
}

Result<QuantBuffer> read_quantised(const WeightSource& source, const WeightId& id,
                                   const Format& format, int64_t outputs, int64_t inputs) {
  if (source_format(source, id.layer, id.expert) == format)
    return read_as_stored(source, id, format, outputs, inputs);
  if (Status status = check_format(format); !status.ok()) return status.at(place_of(source, id));
  MOE_ASSIGN_OR_RETURN(const std::vector<float> values,
                       read_dequantised(source, id, outputs, inputs));
  Result<QuantBuffer> out = quantise(values, format, outputs, inputs);
  if (!out.ok()) return out.status().at(place_of(source, id));
  return out;
}

Result<QuantBuffer> quantise(const std::vector<float>& values, const Format& format,
                             int64_t outputs, int64_t inputs) {
  for (float value : values)
    if (!std::isfinite(value))
      return error(StatusCode::data_loss, {}, "a weight is {}; it cannot be quantised", value);
  QuantBuffer out(format, outputs, inputs);
  for (int64_t i = 0; format.act_order && i < inputs; ++i)
    out.groups[static_cast<size_t>(i)] = static_cast<int32_t>(i / format.group);
  find_format(format.kind)->encode(values.data(), &out);
  return out;
}

Result<std::vector<float>> read_dequantised(const WeightSource& source, const WeightId& id,
                                            int64_t outputs, int64_t inputs) {
  const Format format = source_format(source, id.layer, id.expert);
  if (!is_quantised(format.kind)) return read_f32(source, id, {outputs, inputs});
  MOE_ASSIGN_OR_RETURN(const QuantBuffer stored,
                       read_as_stored(source, id, format, outputs, inputs));
  return dequantise(stored.view());
}

std::vector<float> dequantise(const QuantMatrix& matrix) {
  std::vector<float> out(static_cast<size_t>(matrix.rows * matrix.columns));
  const QuantFormat& format = *find_format(matrix.format.kind);
  for (int64_t r = 0; r < matrix.rows; ++r)
    format.decode(matrix, r, 0, matrix.columns, out.data() + r * matrix.columns);
  return out;
}

}  // namespace moe
