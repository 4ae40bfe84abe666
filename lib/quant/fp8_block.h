// fp8_block: E4M3 elements times one scale per group x group block (DeepSeek-V3), ragged at the
// edges; group 0: one scale per output. A scale of the whole matrix is that of every output.
// E4M3 here is E4M3FN: bias 7, no infinity, 0x7f and 0xff are NaN, largest 448.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "quant/half.h"

namespace moe {

struct QuantFormat;
extern const QuantFormat kFp8Block;

inline constexpr float kMostE4m3 = 448;

MOE_HOST_DEVICE inline float e4m3_to_f32(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24;
  const uint32_t rest = code & 0x7f;
  uint32_t bits = (rest << 20) + (120u << 23);  // rebias the exponent: 127 - 7
  if (rest < 8) bits = detail::bits_of_f32(static_cast<float>(rest) * 0x1p-9f);  // subnormal
  if (rest == 0x7f) bits = 0x7fc00000;
  return detail::f32_of_bits(sign | bits);
}

// Round to nearest, ties to even; beyond 448 becomes 448, NaN stays NaN.
MOE_HOST_DEVICE inline uint8_t f32_to_e4m3(float value) {
  const uint32_t bits = detail::bits_of_f32(value);
  const uint32_t sign = bits >> 24 & 0x80;
  const uint32_t rest = bits & 0x7fffffff;
  uint32_t code;
  if (rest > 0x7f800000)
    code = 0x7f;
  else if (rest > 0x43e00000)  // 448
    code = 0x7e;
  else if (rest < 0x3c800000)  // below 2^-6: the addition rounds to a multiple of 2^-9
    code = detail::bits_of_f32(detail::f32_of_bits(rest) + 0x1p14f) - 0x46800000;
  else
    code = (rest + 0x7ffff + (rest >> 20 & 1) - (120u << 23)) >> 20;
  return static_cast<uint8_t>(sign | code);
}

}  // namespace moe
