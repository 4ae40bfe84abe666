// The second phase of grouped_gemm.cuh: a consumer warpgroup multiplies its 64 weight rows of a
// tile by kN tokens, stage after stage.
#pragma once

#include "gemm/tile.cuh"
#include "quant/e4m3.cuh"

namespace moe::cuda::grouped {

// A warp has read the stage: whoever fills it, in any block of the cluster, may go on.
template <typename C>
__device__ void release(const Shared<C>& shared, int stage) {
  if constexpr (C::kCluster == 1) {
    barrier_arrive(&shared.empty[stage]);
  } else {
    for (uint32_t rank = 0; rank < C::kCluster; ++rank)
      barrier_arrive_remote(&shared.empty[stage], rank);
  }
}

// Both operands from shared memory, in one type; `weights` are 64 rows.
template <typename C, int kN>
__device__ __forceinline__ void multiply_stage(uint32_t weights, uint32_t tokens,
                                               float (&sum)[kN / 2], bool add) {
  constexpr Element kElement = C::kScaled ? Element::e4m3 : Element::bf16;
  const uint64_t a = matrix_descriptor(weights), b = matrix_descriptor(tokens);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    Wgmma<kN>::template run<kElement>(sum, a + 2 * k, b + 2 * k, add || k > 0);
  wgmma_commit();
}

// e4m3 weights, widened in registers, by the bf16 tokens of a stage.
template <typename C, int kN>
__device__ __forceinline__ void multiply_widened(const Shared<C>& shared, int stage,
                                                 uint32_t weights, float (&sum)[kN / 2]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  uint32_t a[8][4];
#pragma unroll
  for (int k = 0; k < 8; k += 2) {
    uint32_t words[4];  // 16 columns of rows 0 and 8, then the next 16
    load_matrices(words, weights + warp * 16 * 128 + swizzled(lane % 16, k + lane / 16));
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // gemm/layout.h: e4m3_column()
      a[k + i / 2][i % 2] = widen(words[i]);
      a[k + i / 2][i % 2 + 2] = widen(words[i] << 8);
    }
  }
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 8; ++k)
    WgmmaRegisters<kN>::run(sum, a[k], matrix_descriptor(shared.tokens(stage, k / 4)) + k % 4 * 2,
                            k > 0);
  wgmma_commit();
}

// Where 64 rows of a consumer lie in a stage.
template <typename C>
__device__ uint32_t half_of(const Shared<C>& shared, int stage, int consumer, int half) {
  return shared.weights(stage) + (consumer * C::kHalves + half) * 64 * 128;
}

template <typename C, int kN>
__device__ __forceinline__ void multiply_bf16(const GroupedGemmArgs& args, const Shared<C>& shared,
                                              Cursor<C::kStages>* cursor, int consumer,
                                              float (&sum)[kN / 2]) {
  const int blocks = blocks_of<C>(args);
  const bool leader = threadIdx.x % 32 == 0;
  int previous = -1;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum[i] = 0;
  for (int block = 0; block < blocks; ++block, cursor->next()) {
    barrier_wait(&shared.full[cursor->stage], cursor->phase);
    if (C::kGather && args.row_index) fence_async_proxy();  // cp.async wrote the token rows
    multiply_stage<C, kN>(half_of(shared, cursor->stage, consumer, 0), shared.tokens(cursor->stage),
                          sum, true);
    wgmma_wait<1>();
    if (leader && previous >= 0) release(shared, previous);
    previous = cursor->stage;
  }
  wgmma_wait<0>();
  if (leader) release(shared, previous);
}

// The scales of a consumer's weight rows: one per 128 inputs for a thread's first and second 8 rows
// of 16.
struct WeightScales {
  const float* low;
  const float* high;

  // Interleaved rows hold 8 gates and 8 ups.
  __device__ WeightScales(const GroupedGemmArgs& args, int slot, int64_t row, bool interleaved,
                          int64_t blocks) {
    const int64_t rows = interleaved ? args.weight_rows / 2 : args.weight_rows;
    const int64_t group = (interleaved ? row / 2 : row) / kScaleBlock, groups = scale_blocks(rows);
    low = reinterpret_cast<const float*>(args.weight_scales + slot * args.slot_bytes) +
          min(group, groups - 1) * blocks;  // rows beyond the last: any
    high = low + (interleaved ? groups * blocks : 0);
  }
};

// sum += part, times the scales of the thread's weight rows and tokens.
template <typename C, int kN>
__device__ __forceinline__ void add_scaled(float (&sum)[kN / 2], const float (&part)[kN / 2],
                                           float low, float high, const float* row_scales) {
  const float2* scale = reinterpret_cast<const float2*>(row_scales) + threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    const float2 row = C::kRowScales ? scale[4 * j] : float2{1, 1};
    const float2 a = {low * row.x, low * row.y};
    const float2 b = C::kActivate ? float2{high * row.x, high * row.y} : a;
    sum[4 * j] = fmaf(part[4 * j], a.x, sum[4 * j]);
    sum[4 * j + 1] = fmaf(part[4 * j + 1], a.y, sum[4 * j + 1]);
    sum[4 * j + 2] = fmaf(part[4 * j + 2], b.x, sum[4 * j + 2]);
    sum[4 * j + 3] = fmaf(part[4 * j + 3], b.y, sum[4 * j + 3]);
  }
}

// Each stage is one scale block: its product is scaled and added outside the matrix units, which
// the other consumer uses meanwhile.
template <typename C, int kN>
__device__ __forceinline__ void multiply_scaled(const GroupedGemmArgs& args,
                                                const Shared<C>& shared, Cursor<C::kStages>* cursor,
                                                int consumer, const Work& work,
                                                float (&sum)[C::kHalves][kN / 2]) {
  const int blocks = blocks_of<C>(args);
  const WeightScales scales(args, work.slot, work.weight_row + consumer * C::kHalves * 64,
                            C::kActivate, blocks);
#pragma unroll
  for (int i = 0; i < C::kHalves * kN / 2; ++i) sum[i / (kN / 2)][i % (kN / 2)] = 0;
  float low = __ldg(scales.low), high = __ldg(scales.high);
#pragma unroll 1
  for (int block = 0; block < blocks; ++block, cursor->next()) {
    const int stage = cursor->stage;
    barrier_wait(&shared.full[stage], cursor->phase);
    if (C::kGather && args.row_index) fence_async_proxy();  // cp.async wrote the token rows
    const int ahead = min(block + 1, blocks - 1);
    const float next_low = __ldg(scales.low + ahead), next_high = __ldg(scales.high + ahead);
#pragma unroll
    for (int half = 0; half < C::kHalves; ++half) {
      float part[kN / 2];
      const uint32_t weights = half_of(shared, stage, consumer, half);
      if constexpr (C::kRowScales)
        multiply_stage<C, kN>(weights, shared.tokens(stage), part, false);
      else
        multiply_widened<C, kN>(shared, stage, weights, part);
      wgmma_wait<0>();
      add_scaled<C, kN>(sum[half], part, low, high, shared.scales(stage));
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) release(shared, stage);
    low = next_low, high = next_high;
  }
}

}  // namespace moe::cuda::grouped
