// e4m3 on the device: rows quantised with a scale per 128 values, and codes widened to bf16.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp8.h>

namespace moe::cuda {

// 128 neighbouring values of a row share the scale amax / 448, and the code of a value is
// e4m3(value * (1 / scale)). What is not finite stays so.
struct RowScale {
  float scale;
  float inverse;

  // `amax_bits`: the largest of the values' bits without sign. A group that is nearly zero gets a
  // scale that can still be inverted.
  __device__ explicit RowScale(uint32_t amax_bits) {
    scale = __uint_as_float(max(amax_bits, 0x0d800000u)) * (1.0f / 448.0f);  // 2^-100
    inverse = 1.0f / scale;
  }

  // Columns 2 q, 2 q + 1 and 2 q + 8, 2 q + 9 of 16 become word q of e4m3_column().
  __device__ uint32_t word(float2 first, float2 second) const {
    return pair(second.x, first.x) | pair(second.y, first.y) << 16;
  }
  __device__ uint32_t word(uint32_t first, uint32_t second) const {  // of packed bf16
    return word(float2{__uint_as_float(first << 16), __uint_as_float(first & 0xFFFF0000u)},
                float2{__uint_as_float(second << 16), __uint_as_float(second & 0xFFFF0000u)});
  }

 private:
  __device__ uint32_t pair(float low, float high) const {
    return __nv_cvt_float2_to_fp8x2({low * inverse, high * inverse}, __NV_SATFINITE, __NV_E4M3);
  }
};

// The larger magnitude of two values, of two packed bf16, as the bits of a float.
__device__ inline uint32_t magnitude_bits(float2 values) {
  return max(__float_as_uint(values.x) & 0x7FFFFFFFu, __float_as_uint(values.y) & 0x7FFFFFFFu);
}
__device__ inline uint32_t magnitude_bits(uint32_t packed) {
  return max((packed << 16) & 0x7FFF0000u, packed & 0x7FFF0000u);
}

// Finite codes in the high bytes of both halves as bf16, exactly: their bits stand for the value
// times 2^-120.
__device__ inline uint32_t widen(uint32_t codes) {
  const uint32_t bits = (codes & 0x80008000u) | ((codes >> 4) & 0x07F007F0u);
  constexpr uint32_t kRebias = 0x7B807B80u;  // 2^120 twice
  uint32_t out;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(bits), "r"(kRebias));
  return out;
}

}  // namespace moe::cuda
