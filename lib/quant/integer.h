// What int8 and int4 share: groups of inputs, and the search for the scale of a group.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "quant/formats.h"

namespace moe {

// The group of an input.
inline int64_t group_at(const QuantMatrix& m, int64_t column) {
  if (m.groups) return m.groups[column];
  return m.format.group > 0 ? column / m.format.group : 0;
}

// The integers that a format has; `zero` stands for 0 unless groups have zero points.
struct IntegerRange {
  int least, most, zero;
};

// How one group is written: q = clamp(round(value / scale) + zero).
struct GroupCode {
  float scale = 1;
  int zero = 0;

  int code(float value, const IntegerRange& range) const {
    const float q = std::nearbyint(value / scale) + static_cast<float>(zero);
    return static_cast<int>(
        std::clamp(q, static_cast<float>(range.least), static_cast<float>(range.most)));
  }
};

// The code of the group's values: with zero points from the least to the greatest value, otherwise
// the scale, of some below the one that holds the largest value, with the smallest squared error.
// Values are finite. A group of zeros has scale 1.
GroupCode choose_code(const IntegerRange& range, const Format& format, const float* values,
                      int64_t count);

// Calls store(row, column, q) for every element of the row-major `values` and fills out's scales
// and zeros.
template <class Store>
void encode_integers(const IntegerRange& range, const float* values, QuantBuffer* out,
                     Store store) {
  const int64_t groups = groups_of(out->format, out->columns);
  const int64_t size = out->format.group > 0 ? out->format.group : out->columns;
  for (int64_t row = 0; row < out->rows; ++row, values += out->columns)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * size, count = std::min(size, out->columns - begin);
      const GroupCode code = choose_code(range, out->format, values + begin, count);
      const auto at = static_cast<size_t>(row * groups + g);
      out->scales[at] = code.scale;
      if (!out->zeros.empty()) out->zeros[at] = static_cast<uint8_t>(code.zero);
      for (int64_t i = begin; i < begin + count; ++i) store(row, i, code.code(values[i], range));
    }
}

}  // namespace moe
