#include "quant/fp8_block.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "quant/formats.h"

namespace moe {
namespace {

bool any_group(int32_t group) { return group >= 0; }

int64_t group_rows(const Format& format) { return std::max(format.group, 1); }
int64_t group_columns(const Format& format, int64_t columns) {
  return format.group > 0 ? format.group : std::max<int64_t>(columns, 1);
}

void decode(const QuantMatrix& m, int64_t row, int64_t begin, int64_t count, float* out) {
  const uint8_t* codes = m.values + row * m.columns;
  const int64_t span = group_columns(m.format, m.columns);
  const float* scales = m.scales + row / group_rows(m.format) * groups_of(m.format, m.columns);
  for (int64_t i = 0; i < count; ++i)
    out[i] = e4m3_to_f32(codes[begin + i]) * scales[(begin + i) / span];
}

// Rows [top, bottom) and columns [left, right) of a matrix.
struct Block {
  int64_t top, bottom, left, right;
};

float largest(const float* values, int64_t columns, const Block& b) {
  float most = 0;
  for (int64_t r = b.top; r < b.bottom; ++r)
    for (int64_t c = b.left; c < b.right; ++c)
      most = std::max(most, std::fabs(values[r * columns + c]));
  return most;
}

// At least the smallest normal number of its type: a smaller scale counts as a broken one.
float scale_for(DType type, float most) {
  if (most == 0) return 1;
  const float least = type == DType::f16 ? 0x1p-14f : std::numeric_limits<float>::min();
  return round_scale(type, std::max(most / kMostE4m3, least));
}

void encode(const float* values, QuantBuffer* out) {
  const int64_t high = group_rows(out->format), wide = group_columns(out->format, out->columns);
  float* scale = out->scales.data();
  for (int64_t top = 0; top < out->rows; top += high)
    for (int64_t left = 0; left < out->columns; left += wide, ++scale) {
      const Block b = {top, std::min(top + high, out->rows), left,
                       std::min(left + wide, out->columns)};
      *scale = scale_for(out->format.scale, largest(values, out->columns, b));
      for (int64_t r = b.top; r < b.bottom; ++r)
        for (int64_t c = b.left; c < b.right; ++c)
          out->values[static_cast<size_t>(r * out->columns + c)] =
              f32_to_e4m3(values[r * out->columns + c] / *scale);
    }
}

bool is_finite(uint8_t code) { return (code & 0x7f) != 0x7f; }

}  // namespace

const QuantFormat kFp8Block = {.kind = FormatKind::fp8_block,
                               .element = DType::f8_e4m3,
                               .per_byte = 1,
                               .square = true,
                               .integer = false,
                               .problem = "0 or more",
                               .group_ok = any_group,
                               .decode = decode,
                               .encode = encode,
                               .finite = is_finite};

}  // namespace moe
