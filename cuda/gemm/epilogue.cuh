// The last phase of grouped_gemm.cuh: bias and activation on the accumulators, and the way of the
// output through shared memory, as bf16 or as e4m3 rows with their scales.
#pragma once

#include <cuda_bf16.h>

#include "gemm/activation.cuh"
#include "gemm/tile.cuh"
#include "quant/e4m3.cuh"

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

// A half's rows, from `weight_row` on.
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

// Activated values of kCount tokens as f32, a row each; `staging`: at the half's first column.
template <typename C, int kN, int kFirst, int kCount>
__device__ __forceinline__ void stage_wide(const Packer<C, kN>& values, std::byte* staging) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  std::byte* to = staging + lane % 4 * 2 * C::kPitch + (warp * 8 + lane / 4) * 4;
#pragma unroll
  for (int j = 0; j < kCount / 8; ++j, to += 8 * C::kPitch) {
    const float2 value = values.both(kFirst / 8 + j);
    *reinterpret_cast<float*>(to) = value.x;
    *reinterpret_cast<float*>(to + C::kPitch) = value.y;
  }
}

// Rows of 128 activated columns from staging to the output, as e4m3: a warp a row at a time. A lane
// has one word of e4m3_column().
template <typename C, int kCount>
__device__ __forceinline__ void write_quantized(const GroupedGemmArgs& args, const Work& work,
                                                int first_token, const std::byte* staging) {
  const int warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32;
  const int64_t first = work.weight_row / 2, column = first + lane * 4;
  auto* out = static_cast<std::byte*>(args.out);
#pragma unroll
  for (int token = warp; token < kCount; token += 4 * C::kConsumers) {
    if (first_token + token >= work.rows) break;
    const std::byte* from = staging + token * C::kPitch + lane / 4 * 64 + lane % 4 * 8;
    const float2 low = *reinterpret_cast<const float2*>(from);
    const float2 high = *reinterpret_cast<const float2*>(from + 32);  // 8 columns on
    const RowScale scale(__reduce_max_sync(~0u, max(magnitude_bits(low), magnitude_bits(high))));
    const int64_t row = work.row + first_token + token;
    if (column < args.out_columns)
      *reinterpret_cast<uint32_t*>(out + row * args.out_stride + column) = scale.word(low, high);
    if (lane == 0 && first < args.out_columns)
      args.out_scales[first / kScaleBlock * args.out_scale_stride + row] = scale.scale;
  }
}

template <typename C, int kN, int kFirst = 0>
__device__ __forceinline__ void store_quantized(const GroupedGemmArgs& args, const Work& work,
                                                int consumer,
                                                const float (&sum)[C::kHalves][kN / 2],
                                                const float2 (&bias)[C::kHalves],
                                                const Activating& activating, std::byte* staging) {
  if (kFirst >= work.rows) return;
#pragma unroll
  for (int half = 0; half < C::kHalves; ++half) {
    const Packer<C, kN> values{activating, sum[half], bias[half].x, bias[half].y};
    stage_wide<C, kN, kFirst, C::kChunk>(
        values, staging + (consumer * C::kHalves + half) * C::kColumns * 4);
  }
  named_barrier(1, 128 * C::kConsumers);
  write_quantized<C, C::kChunk>(args, work, kFirst, staging);
  named_barrier(1, 128 * C::kConsumers);
  if constexpr (kFirst + C::kChunk < kN)
    store_quantized<C, kN, kFirst + C::kChunk>(args, work, consumer, sum, bias, activating,
                                               staging);
}

}  // namespace moe::cuda::grouped
