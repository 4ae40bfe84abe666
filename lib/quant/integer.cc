#include "quant/integer.h"

#include <limits>

namespace moe {
namespace {

// Scales tried, as fractions of the one that holds the largest value: clipping a few outliers costs
// less than coarse steps for all others.
constexpr float kFractions[] = {1.0f, 0.975f, 0.95f, 0.925f, 0.9f, 0.875f, 0.85f, 0.8f};

// A scale that is stored must be a normal number of its type.
float storable(DType type, float scale) {
  const float least = type == DType::f16 ? 0x1p-14f : std::numeric_limits<float>::min();
  const float most = type == DType::f16 ? 65504.0f : 3.0e38f;
  return round_scale(type, std::clamp(scale, least, most));
}

double squared_error(const IntegerRange& range, const GroupCode& code, const float* values,
                     int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float back = static_cast<float>(code.code(values[i], range) - code.zero) * code.scale;
    sum += static_cast<double>(values[i] - back) * (values[i] - back);
  }
  return sum;
}

GroupCode with_zero_point(const IntegerRange& range, DType type, float low, float high) {
  low = std::min(low, 0.0f), high = std::max(high, 0.0f);
  GroupCode code;
  const auto steps = static_cast<float>(range.most - range.least);
  code.scale = storable(type, high / steps - low / steps);
  const float zero = static_cast<float>(range.least) - std::nearbyint(low / code.scale);
  code.zero = static_cast<int>(
      std::clamp(zero, static_cast<float>(range.least), static_cast<float>(range.most)));
  return code;
}

}  // namespace

GroupCode choose_code(const IntegerRange& range, const Format& format, const float* values,
                      int64_t count) {
  const auto [low, high] = std::minmax_element(values, values + count);
  if (*low == 0 && *high == 0) return {.scale = 1, .zero = range.zero};
  if (format.zero_points) return with_zero_point(range, format.scale, *low, *high);

  // The range reaches one step further below zero than above it: either sign of the largest value
  // may be the one that decides.
  const float up = *high / static_cast<float>(range.most - range.zero);
  const float down = *low / static_cast<float>(range.least - range.zero);
  const float largest = std::max(up, down);
  GroupCode best;
  double best_error = std::numeric_limits<double>::infinity();
  for (float fraction : kFractions) {
    const GroupCode code = {storable(format.scale, largest * fraction), range.zero};
    const double error = squared_error(range, code, values, count);
    if (error < best_error) best = code, best_error = error;
  }
  return best;
}

}  // namespace moe
