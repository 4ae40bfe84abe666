// q8: how rows meet integer weights. 32 values share a scale: value = q * scale, q from -127 to
// 127.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace moe {

inline constexpr int64_t kQ8Block = 32;

// Values below this in size are written as 0: the reciprocal of their scale would overflow.
inline constexpr float kQ8Tiny = 1.5e-36f;

// Writes kQ8Block integers and returns their scale; NaN if a value is not finite, so that whatever
// the row is multiplied with becomes NaN too. The SIMD versions give the same bits.
inline float encode_q8(const float* values, int8_t* q) {
  float most = 0;
  bool finite = true;
  for (int64_t i = 0; i < kQ8Block; ++i) {
    most = std::max(most, std::fabs(values[i]));
    finite &= std::isfinite(values[i]);
  }
  if (!finite || most < kQ8Tiny) {
    std::fill_n(q, kQ8Block, int8_t{0});
    return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const float inverse = 127.0f / most;
  for (int64_t i = 0; i < kQ8Block; ++i)
    q[i] = static_cast<int8_t>(std::nearbyint(values[i] * inverse));
  return most / 127.0f;
}

}  // namespace moe
