#include "gemm/read_matrix.h"

#include <algorithm>
#include <cmath>
#include <utility>

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

// `id` must have this type and shape.
Status check_stored(const WeightSource& source, const WeightId& id, DType type, const Dims& shape) {
  MOE_ASSIGN_OR_RETURN(const TensorShape stored, source.describe(id));
  if (stored.shape == shape && stored.dtype == type) return {};
  return invalid_argument(
      place_of(source, id), "{} is [{}] {}; wanted [{}] {}", to_string(id.kind),
      fmt::join(stored.shape.extent, stored.shape.extent + stored.shape.rank, ", "),
      to_string(stored.dtype), fmt::join(shape.extent, shape.extent + shape.rank, ", "),
      to_string(type));
}

// A matrix whose memory waits for what `reads` asks for.
class Reading {
 public:
  Reading(const WeightSource& source, const MatrixId& of) : source_(source) { made_.of = of; }

  Status prepare(std::vector<WeightRead>* reads) {
    const Format format = source_format(source_, made_.of.id.layer, made_.of.id.expert);
    return is_quantised(format.kind) && made_.of.inputs > 0 ? prepare_quantised(format, reads)
                                                            : prepare_floats(reads);
  }

  Result<StoredMatrix> finish() && {
    if (made_.floats) return std::move(made_);
    QuantBuffer& matrix = made_.quantised;
    load_row(matrix.format.scale, scales_.data(), 1, static_cast<int64_t>(matrix.scales.size()),
             matrix.scales.data());
    if (Status status = check_matrix(matrix.view()); !status.ok())
      return status.at(place_of(source_, made_.of.id));
    return std::move(made_);
  }

 private:
  Status prepare_floats(std::vector<WeightRead>* reads) {
    const auto& [id, outputs, inputs] = made_.of;
    const Dims shape = inputs > 0 ? Dims{outputs, inputs} : Dims{outputs};
    MOE_ASSIGN_OR_RETURN(made_.dtype, float_type(source_, id, shape));
    const auto bytes = static_cast<size_t>(shape.elements() * (bits_of(made_.dtype) / 8));
    made_.floats = std::make_unique_for_overwrite<std::byte[]>(bytes);
    reads->push_back({id, {made_.floats.get(), made_.dtype, shape}});
    return {};
  }

  Status prepare_quantised(const Format& format, std::vector<WeightRead>* reads) {
    const WeightId id = made_.of.id;
    const int64_t outputs = made_.of.outputs, inputs = made_.of.inputs;
    if (Status status = check_format(format); !status.ok()) return status.at(place_of(source_, id));
    QuantBuffer& to = made_.quantised = QuantBuffer(format, outputs, inputs);
    scales_.resize(to.scales.size() * static_cast<size_t>(bits_of(format.scale) / 8));
    const auto add = [&](Role role, DType type, const Dims& shape, void* out) {
      const WeightId part{id.layer, companion(id.kind, role), id.expert};
      reads->push_back({part, {out, type, shape}});
      return check_stored(source_, part, type, shape);
    };
    const Dims groups = scale_shape(format, outputs, inputs);
    MOE_RETURN_IF_ERROR(add(Role::matrix, value_type(format), value_shape(format, outputs, inputs),
                            to.values.data()));
    MOE_RETURN_IF_ERROR(add(Role::scale, format.scale, groups, scales_.data()));
    if (format.zero_points)
      MOE_RETURN_IF_ERROR(add(Role::zero, zero_type(format), groups, to.zeros.data()));
    if (format.act_order)
      MOE_RETURN_IF_ERROR(add(Role::group, DType::i32, {inputs}, to.groups.data()));
    return {};
  }

  const WeightSource& source_;
  StoredMatrix made_;
  std::vector<std::byte> scales_;  // as stored
};

}  // namespace

Format source_format(const WeightSource& source, int32_t layer, int32_t expert) {
  for (const LayerSpec& spec : source.layers())
    if (spec.layer == layer)
      return expert == kSharedExpert && spec.shared ? spec.shared->expert.format
                                                    : spec.expert.format;
  return {};
}

Result<std::vector<StoredMatrix>> read_stored(const WeightSource& source,
                                              std::span<const MatrixId> ids) {
  std::vector<Reading> readings;
  readings.reserve(ids.size());
  std::vector<WeightRead> reads;
  for (const MatrixId& id : ids)
    MOE_RETURN_IF_ERROR(readings.emplace_back(source, id).prepare(&reads));
  MOE_RETURN_IF_ERROR(source.read_all(reads));
  std::vector<StoredMatrix> matrices;
  matrices.reserve(ids.size());
  for (Reading& reading : readings) {
    MOE_ASSIGN_OR_RETURN(StoredMatrix matrix, std::move(reading).finish());
    matrices.push_back(std::move(matrix));
  }
  return matrices;
}

Result<QuantBuffer> in_format(const WeightSource& source, StoredMatrix matrix,
                              const Format& format) {
  if (!matrix.floats && matrix.quantised.format == format) return std::move(matrix.quantised);
  const Place place = place_of(source, matrix.of.id);
  if (Status status = check_format(format); !status.ok()) return status.at(place);
  Result<QuantBuffer> out = quantise(in_f32(matrix), format, matrix.of.outputs, matrix.of.inputs);
  if (!out.ok()) return out.status().at(place);
  return out;
}

std::vector<float> in_f32(const StoredMatrix& matrix) {
  if (!matrix.floats) return dequantise(matrix.quantised.view());
  const int64_t count = matrix.of.outputs * std::max<int64_t>(1, matrix.of.inputs);
  std::vector<float> out(static_cast<size_t>(count));
  load_row(matrix.dtype, matrix.floats.get(), 1, count, out.data());
  return out;
}

Result<QuantBuffer> read_quantised(const WeightSource& source, const WeightId& id,
                                   const Format& format, int64_t outputs, int64_t inputs) {
  const MatrixId one{id, outputs, inputs};
  MOE_ASSIGN_OR_RETURN(std::vector<StoredMatrix> read, read_stored(source, {&one, 1}));
  return in_format(source, std::move(read[0]), format);
}

Result<std::vector<float>> read_dequantised(const WeightSource& source, const WeightId& id,
                                            int64_t outputs, int64_t inputs) {
  const MatrixId one{id, outputs, inputs};
  MOE_ASSIGN_OR_RETURN(const std::vector<StoredMatrix> read, read_stored(source, {&one, 1}));
  return in_f32(read[0]);
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

std::vector<float> dequantise(const QuantMatrix& matrix) {
  std::vector<float> out(static_cast<size_t>(matrix.rows * matrix.columns));
  const QuantFormat& format = *find_format(matrix.format.kind);
  for (int64_t r = 0; r < matrix.rows; ++r)
    format.decode(matrix, r, 0, matrix.columns, out.data() + r * matrix.columns);
  return out;
}

}  // namespace moe
