// Rows of floats of any type in device memory, as a host passes them.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "runtime/rows.h"

namespace moe::cuda {

__device__ inline float load_float(const void* data, DType type, int64_t i) {
  switch (type) {
    case DType::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
    case DType::f16: return __half2float(static_cast<const __half*>(data)[i]);
    default: return static_cast<const float*>(data)[i];
  }
}

__device__ inline void store_float(void* data, DType type, int64_t i, float value) {
  switch (type) {
    case DType::bf16: static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16(value); break;
    case DType::f16: static_cast<__half*>(data)[i] = __float2half(value); break;
    default: static_cast<float*>(data)[i] = value;
  }
}

// 2 neighbouring values, from an address that is a multiple of 2 of them.
__device__ inline void load_2(const void* data, DType type, int64_t i, float (&out)[2]) {
  out[0] = load_float(data, type, i);
  out[1] = load_float(data, type, i + 1);
}

__device__ inline void store_2(void* data, DType type, int64_t i, const float (&value)[2]) {
  void* to = static_cast<uint16_t*>(data) + i;
  switch (type) {
    case DType::bf16:
      *static_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(value[0], value[1]);
      break;
    case DType::f16: *static_cast<__half2*>(to) = __floats2half2_rn(value[0], value[1]); break;
    default: *reinterpret_cast<float2*>(static_cast<float*>(data) + i) = {value[0], value[1]};
  }
}

// 8 packed values of 16 bits.
__device__ inline void widen_8(uint4 packed, DType type, float (&out)[8]) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if (type == DType::bf16) {
      out[2 * w] = __uint_as_float(words[w] << 16);
      out[2 * w + 1] = __uint_as_float(words[w] & 0xFFFF0000u);
    } else {
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[w]));
      out[2 * w] = pair.x;
      out[2 * w + 1] = pair.y;
    }
  }
}

// 8 neighbouring values, from an address that is a multiple of 8 of them.
__device__ inline void load_8(const void* data, DType type, int64_t i, float (&out)[8]) {
  if (type == DType::f32) {
    const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(data) + i);
    const float4 a = from[0], b = from[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
    return;
  }
  widen_8(*reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(data) + i), type, out);
}

__device__ inline void store_8(void* data, DType type, int64_t i, const float (&value)[8]) {
  if (type == DType::f32) {
    float4* to = reinterpret_cast<float4*>(static_cast<float*>(data) + i);
    to[0] = {value[0], value[1], value[2], value[3]};
    to[1] = {value[4], value[5], value[6], value[7]};
    return;
  }
  uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if (type == DType::bf16) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(value[2 * w], value[2 * w + 1]);
      words[w] = *reinterpret_cast<const uint32_t*>(&pair);
    } else {
      const __half2 pair = __floats2half2_rn(value[2 * w], value[2 * w + 1]);
      words[w] = *reinterpret_cast<const uint32_t*>(&pair);
    }
  }
  *reinterpret_cast<uint4*>(static_cast<uint16_t*>(data) + i) = {words[0], words[1], words[2],
                                                                 words[3]};
}

}  // namespace moe::cuda
