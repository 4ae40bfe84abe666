// bf16 and f16 as bits in a uint16_t, and rows of any float type as f32.
// To 16 bits: round to nearest, ties to even; overflow becomes infinity; NaN stays NaN (quiet, its
// leading payload kept). From 16 bits: exact. As the conversion instructions of CPUs and GPUs do.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"
#include "moe/tensor.h"

namespace moe {

namespace detail {
MOE_HOST_DEVICE inline uint32_t bits_of_f32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
MOE_HOST_DEVICE inline float f32_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace detail

MOE_HOST_DEVICE inline float bf16_to_f32(uint16_t half) {
  return detail::f32_of_bits(static_cast<uint32_t>(half) << 16);
}

MOE_HOST_DEVICE inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = detail::bits_of_f32(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

MOE_HOST_DEVICE inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t rest = half & 0x7fff;
  uint32_t bits = (rest << 13) + (112u << 23);  // rebias the exponent: 127 - 15
  if (rest < 0x400) bits = detail::bits_of_f32(static_cast<float>(rest) * 0x1p-24f);  // subnormal
  if (rest >= 0x7c00) bits = rest << 13 | 0x7f800000;
  if (rest > 0x7c00) bits |= 0x400000;
  return detail::f32_of_bits(sign | bits);
}

MOE_HOST_DEVICE inline uint16_t f32_to_f16(float value) {
  const uint32_t bits = detail::bits_of_f32(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t rest = bits & 0x7fffffff;
  uint32_t half;
  if (rest > 0x7f800000)
    half = 0x7e00 | (rest >> 13 & 0x3ff);
  else if (rest >= 0x477ff000)  // 65520 and above round to infinity
    half = 0x7c00;
  else if (rest < 0x38800000)  // below 2^-14: the addition rounds to a multiple of 2^-24
    half = detail::bits_of_f32(detail::f32_of_bits(rest) + 0.5f) - 0x3f000000;
  else
    half = (rest + 0xfff + (rest >> 13 & 1) - (112u << 23)) >> 13;
  return static_cast<uint16_t>(sign | half);
}

// The types below; hidden states, logits and router weights come in these.
MOE_HOST_DEVICE inline bool is_float(DType type) {
  return type == DType::f32 || type == DType::bf16 || type == DType::f16 || type == DType::f64;
}

// Element `at` of an array of a type that is_float().
MOE_HOST_DEVICE inline float load_float(DType type, const void* data, int64_t at) {
  switch (type) {
    case DType::f32: return static_cast<const float*>(data)[at];
    case DType::bf16: return bf16_to_f32(static_cast<const uint16_t*>(data)[at]);
    case DType::f16: return f16_to_f32(static_cast<const uint16_t*>(data)[at]);
    default: return static_cast<float>(static_cast<const double*>(data)[at]);
  }
}

MOE_HOST_DEVICE inline void store_float(DType type, void* data, int64_t at, float value) {
  switch (type) {
    case DType::f32: static_cast<float*>(data)[at] = value; break;
    case DType::bf16: static_cast<uint16_t*>(data)[at] = f32_to_bf16(value); break;
    case DType::f16: static_cast<uint16_t*>(data)[at] = f32_to_f16(value); break;
    default: static_cast<double*>(data)[at] = value;
  }
}

// `count` elements, `stride` elements apart, into dense f32, and back.
inline void load_row(DType type, const void* row, int64_t stride, int64_t count, float* out) {
  if (type == DType::f32 && stride == 1) {
    if (count > 0) memcpy(out, row, static_cast<size_t>(count) * sizeof(float));
  } else if (type == DType::bf16 && stride == 1) {  // the compiler makes this one SIMD
    const auto* halves = static_cast<const uint16_t*>(row);
    for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(halves[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = load_float(type, row, i * stride);
  }
}

inline void store_row(DType type, const float* values, int64_t count, void* row, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) store_float(type, row, i * stride, values[i]);
}

}  // namespace moe
