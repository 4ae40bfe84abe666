#include "quant/formats.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "quant/fp8_block.h"
#include "quant/half.h"
#include "quant/int4.h"
#include "quant/int8.h"

namespace moe {
namespace {

constexpr const QuantFormat* kFormats[] = {&kFp8Block, &kInt8, &kInt4};

// Zero, not finite, or subnormal in the type it is stored in: the mark of a dead expert.
bool is_bad_scale(DType type, float scale) {
  const float least = type == DType::f16 ? 0x1p-14f : std::numeric_limits<float>::min();
  return !(std::fabs(scale) >= least && std::fabs(scale) <= std::numeric_limits<float>::max());
}

}  // namespace

const QuantFormat* find_format(FormatKind kind) {
  for (const QuantFormat* format : kFormats)
    if (format->kind == kind) return format;
  return nullptr;
}

Status check_format(const Format& format) {
  if (!is_quantised(format.kind)) return {};
  const QuantFormat* found = find_format(format.kind);
  const Place place = {.phase = Phase::plan};
  if (!found)
    return error(StatusCode::unimplemented, place, "no code reads {}", to_string(format.kind));
  if (!found->group_ok(format.group))
    return invalid_argument(place, "group is {}; {} wants {}", format.group, to_string(format.kind),
                            found->problem);
  if (format.scale != DType::f32 && format.scale != DType::f16 && format.scale != DType::bf16)
    return invalid_argument(place, "scales are {}; wanted f32, f16 or bf16",
                            to_string(format.scale));
  if ((format.zero_points || format.act_order) && !found->integer)
    return invalid_argument(place, "{} has neither zero points nor act-order",
                            to_string(format.kind));
  return {};
}

std::string format_name(const Format& format) {
  if (!is_quantised(format.kind)) return to_string(format.kind);
  return fmt::format("{}-g{}-{}{}{}", to_string(format.kind), format.group, to_string(format.scale),
                     format.zero_points ? "-zero" : "", format.act_order ? "-order" : "");
}

int64_t groups_of(const Format& format, int64_t columns) {
  return format.group > 0 ? (columns + format.group - 1) / format.group : 1;
}

int64_t row_bytes(const Format& format, int64_t columns) {
  const int per_byte = find_format(format.kind)->per_byte;
  return (columns + per_byte - 1) / per_byte;
}

Dims value_shape(const Format& format, int64_t rows, int64_t columns) {
  return {rows, row_bytes(format, columns)};
}

Dims scale_shape(const Format& format, int64_t rows, int64_t columns) {
  const bool square = find_format(format.kind)->square && format.group > 0;
  return {square ? groups_of(format, rows) : rows, groups_of(format, columns)};
}

DType value_type(const Format& format) { return find_format(format.kind)->element; }

DType zero_type(const Format& format) {
  return format.kind == FormatKind::int8 ? DType::i8 : DType::u8;
}

namespace {

Status check_elements(const QuantMatrix& m) {
  const auto finite = find_format(m.format.kind)->finite;
  if (!finite) return {};
  const int64_t row = row_bytes(m.format, m.columns);
  for (int64_t r = 0; r < m.rows; ++r) {
    const uint8_t* values = m.values + r * row;
    bool all = true;
    for (int64_t i = 0; i < row; ++i) all &= finite(values[i]);
    if (all) continue;
    const auto bad = std::find_if_not(values, values + row, finite);
    return error(StatusCode::data_loss, {}, "element [{}, {}] is NaN (0x{:02x})", r,
                 (bad - values) * find_format(m.format.kind)->per_byte, *bad);
  }
  return {};
}

}  // namespace

Status check_matrix(const QuantMatrix& m) {
  const Dims shape = scale_shape(m.format, m.rows, m.columns);
  for (int64_t i = 0; i < shape.elements(); ++i)
    if (is_bad_scale(m.format.scale, m.scales[i]))
      return error(StatusCode::data_loss, {},
                   "scale [{}, {}] is {}; wanted a normal number, the weights it belongs to are "
                   "dead",
                   i / shape[1], i % shape[1], m.scales[i]);
  for (int64_t c = 0; m.groups && c < m.columns; ++c)
    if (m.groups[c] < 0 || m.groups[c] >= shape[1])
      return error(StatusCode::data_loss, {}, "input {} is in group {}; there are {}", c,
                   m.groups[c], shape[1]);
  return check_elements(m);
}

float round_scale(DType type, float scale) {
  if (type == DType::f16) return f16_to_f32(f32_to_f16(scale));
  if (type == DType::bf16) return bf16_to_f32(f32_to_bf16(scale));
  return scale;
}

QuantBuffer::QuantBuffer(const Format& f, int64_t row_count, int64_t column_count)
    : format(f), rows(row_count), columns(column_count) {
  values.resize(static_cast<size_t>(value_shape(f, rows, columns).elements()));
  const auto count = static_cast<size_t>(scale_shape(f, rows, columns).elements());
  scales.resize(count);
  if (f.zero_points) zeros.resize(count);
  if (f.act_order) groups.resize(static_cast<size_t>(columns));
}

QuantMatrix QuantBuffer::view() const {
  return {format,
          rows,
          columns,
          values.data(),
          scales.data(),
          zeros.empty() ? nullptr : zeros.data(),
          groups.empty() ? nullptr : groups.data()};
}

}  // namespace moe
