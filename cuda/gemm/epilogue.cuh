// The last phase of grouped_gemm.cuh: bias and activation on the accumulators, and the way of the
// output through shared memory, as bf16 or as e4m3 rows with their scales.
#pragma once

#include <cuda_bf16.h>

#include "gemm/activation.cuh"
#include "gemm/tile.cuh"

namespace moe::cuda::grouped {

__device__ inline uint32_t pack(float a, float b) {
  const __nv_bfloat162 packed = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&packed);
}

// What is added to the thread's rows of 64 from `weight_row` on: to the first 8 of 16, and to the
// second.
__device__ inline float2 bias_of(const GroupedGemmArgs& args, int slot, int weight_row) {
  if (!args.bias) return {0, 0};
  const float* bias = reinterpret_cast<const float*>(args.bias + slot * args.slot_bytes);
  const int row = weight_row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  return {row < args.weight_rows ? __ldg(bias + row) : 0,
          row + 8 < args.weight_rows ? __ldg(bias + row + 8) : 0};
}

// The thread's values of 8 tokens as registers of transposable matrices: one of activated gates, or
// two of plain rows.
template <typename C, int kN>
struct Packer {
  const Activating& activating;
  const float (&sum)[kN / 2];
  float low_bias, high_bias;
  __device__ float apply(float gate, float up) const {
    if constexpr (C::kOutput == Output::silu) return gate * sigmoid(gate) * up;
    return activating(gate, up);
  }
  __device__ float single(float value) const {
    if constexpr (C::kOutput == Output::unary) return activating(value, 1.0f);
    return value;
  }
  __device__ float2 both(int j) const {
    const float* d = sum + 4 * j;
    return {apply(d[0] + low_bias, d[2] + high_bias), apply(d[1] + low_bias, d[3] + high_bias)};
  }
  __device__ uint32_t activated(int j) const {
    const float2 value = both(j);
    return pack(value.x, value.y);
  }
  __device__ uint32_t low(int j) const {
    return pack(single(sum[4 * j] + low_bias), single(sum[4 * j + 1] + low_bias));
  }
  __device__ uint32_t high(int j) const {
    return pack(single(sum[4 * j + 2] + high_bias), single(sum[4 * j + 3] + high_bias));
  }
};

// Tokens [first, first + kCount) of the tile into the consumer's staging area, a row each.
template <typename C, int kN, int kFirst, int kCount>
__device__ __forceinline__ void stage_chunk(const Packer<C, kN>& values, std::byte* staging) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  constexpr int kJ = kFirst / 8;
  if constexpr (C::kActivate) {
    const uint32_t to = shared_address(staging) + lane * C::kPitch + warp * 16;
    if constexpr (kCount == 8) {
      store_matrix_transposed(to - (lane / 8) * 8 * C::kPitch, values.activated(kJ));
    } else if constexpr (kCount == 16) {
      store_matrix_transposed(to - (lane / 16) * 16 * C::kPitch, values.activated(kJ),
                              values.activated(kJ + 1));
    } else {
#pragma unroll
      for (int j = 0; j < kCount / 8; j += 4)
        store_matrix_transposed(to + j * 8 * C::kPitch, values.activated(kJ + j),
                                values.activated(kJ + j + 1), values.activated(kJ + j + 2),
                                values.activated(kJ + j + 3));
    }
  } else {
    const uint32_t to = shared_address(staging) + (lane / 16 * 8 + lane % 8) * C::kPitch +
                        warp * 32 + (lane / 8 % 2) * 16;
    if constexpr (kCount == 8) {
      store_matrix_transposed(to - (lane / 16 * 8) * C::kPitch, values.low(kJ), values.high(kJ));
    } else {
#pragma unroll
      for (int j = 0; j < kCount / 8; j += 2)
        store_matrix_transposed(to + j * 8 * C::kPitch, values.low(kJ + j), values.high(kJ + j),
                                values.low(kJ + j + 1), values.high(kJ + j + 1));
    }
  }
}

// From staging to the output: 16 bytes a thread, whole rows of the tile by neighbouring threads.
template <typename C, int kCount>
__device__ __forceinline__ void write_chunk(const GroupedGemmArgs& args, const Work& work,
                                            int weight_row, int first, const std::byte* staging) {
  constexpr int kPieces = C::kColumns / 8;
  auto* out = static_cast<__nv_bfloat16*>(args.out);
  const int thread = threadIdx.x % 128;
  const int64_t column = weight_row / (C::kActivate ? 2 : 1) + thread % kPieces * 8;
  if (column >= args.out_columns) return;
#pragma unroll
  for (int token = thread / kPieces; token < kCount; token += 128 / kPieces) {
    if (first + token >= work.rows) break;
    *reinterpret_cast<uint4*>(out + (work.row + first + token) * args.out_stride + column) =
        *reinterpret_cast<const uint4*>(staging + token * C::kPitch + thread % kPieces * 16);
  }
}

// A consumer's rows, from `weight_row` on.
template <typename C, int kN, int kFirst = 0>
__device__ __forceinline__ void store(const GroupedGemmArgs& args, const Work& work, int weight_row,
                                      int consumer, const Packer<C, kN>& values,
                                      std::byte* staging) {
  constexpr int kCount = kN - kFirst < C::kChunk ? kN - kFirst : C::kChunk;
  if (kFirst >= work.rows) return;
  stage_chunk<C, kN, kFirst, kCount>(values, staging);
  named_barrier(1 + consumer, 128);
  write_chunk<C, kCount>(args, work, weight_row, kFirst, staging);
  named_barrier(1 + consumer, 128);
  if constexpr (kFirst + kCount < kN)
    store<C, kN, kFirst + kCount>(args, work, weight_row, consumer, values, staging);
}

}  // namespace moe::cuda::grouped
