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
    barrier_arrive(shared.empty(stage));
  } else {
    for (uint32_t rank = 0; rank < C::kCluster; ++rank)
      barrier_arrive_remote(shared.empty(stage), rank);
  }
}

// Both operands from shared memory, in one type: 64 rows by kN columns.
template <Element kElement, int kN>
__device__ __forceinline__ void multiply_stage(uint32_t rows, uint32_t columns,
                                               float (&sum)[kN / 2], bool add) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    Wgmma<kN>::template run<kElement>(sum, matrix_descriptor(rows, k),
                                      matrix_descriptor(columns, k), add || k > 0);
  wgmma_commit();
}

// Where the 64 rows of a consumer lie in a stage.
template <typename C>
__device__ uint32_t rows_of(const Shared<C>& shared, int stage, int consumer) {
  return shared.weights(stage) + consumer * 64 * 128;
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
    barrier_wait(shared.full(cursor->stage), cursor->phase);
    if (C::gathers_rows(args)) fence_async_proxy();  // cp.async wrote the token rows
    multiply_stage<Element::bf16, kN>(rows_of(shared, cursor->stage, consumer),
                                      shared.tokens(cursor->stage), sum, true);
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

// The product of a stage's 128 inputs while the matrix units work on it: e4m3 weights, widened in
// registers, by bf16 tokens.
template <typename C, int kN>
struct Product {
  int stage;
  float low, high;  // scales
  uint32_t weights[8][4];
  float part[kN / 2];

  __device__ __forceinline__ void start(const Shared<C>& shared, int from, int consumer) {
    stage = from;
    widen_rows(rows_of(shared, stage, consumer));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 8; ++k)
      WgmmaRegisters<kN>::run(part, weights[k],
                              matrix_descriptor(shared.tokens(stage, k / 4), k % 4), k > 0);
    wgmma_commit();
  }
  // Once the matrix units are done: its product is scaled and added outside them.
  __device__ __forceinline__ void finish(const Shared<C>& shared, float (&sum)[kN / 2]) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) release(shared, stage);
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      asm volatile("" : "+f"(part[i]));  // not before the wait
      sum[i] = fmaf(part[i], i % 4 < 2 ? low : high, sum[i]);
    }
  }

 private:
  __device__ __forceinline__ void widen_rows(uint32_t from) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
    for (int k = 0; k < 8; k += 2) {
      uint32_t words[4];  // 16 columns of rows 0 and 8, then the next 16
      load_matrices(words, from + warp * 16 * 128 + swizzled(lane % 16, k + lane / 16));
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // gemm/layout.h: e4m3_column()
        weights[k + i / 2][i % 2] = widen(words[i]);
        weights[k + i / 2][i % 2 + 2] = widen(words[i] << 8);
      }
    }
  }
};

// One stage is widened and another one's product added while the matrix units work, where the
// registers suffice.
template <typename C, int kN>
__device__ __forceinline__ void multiply_widened(const GroupedGemmArgs& args,
                                                 const Shared<C>& shared,
                                                 Cursor<C::kStages>* cursor, int consumer,
                                                 const Work& work, float (&sum)[kN / 2]) {
  constexpr bool kTwo = kN <= 32;
  const int blocks = blocks_of<C>(args);
  const WeightScales scales(args, work.slot, work.weight_row + consumer * 64, C::kActivate, blocks);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum[i] = 0;
  float low = __ldg(scales.low), high = __ldg(scales.high);
  Product<C, kN> product[kTwo ? 2 : 1];
  int block = 0;
  const auto start = [&](Product<C, kN>& p) {
    p.low = low, p.high = high;
    const int ahead = min(++block, blocks - 1);
    low = __ldg(scales.low + ahead), high = __ldg(scales.high + ahead);
    barrier_wait(shared.full(cursor->stage), cursor->phase);
    if (C::gathers_rows(args)) fence_async_proxy();  // cp.async wrote the token rows
    p.start(shared, cursor->stage, consumer);
    cursor->next();
  };
  if constexpr (kTwo) {
    start(product[0]);
#pragma unroll 1
    while (block + 1 < blocks) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        start(product[1 - i]);
        wgmma_wait<1>();
        product[i].finish(shared, sum);
      }
    }
    if (block < blocks) {
      start(product[1]);
      wgmma_wait<1>();
      product[0].finish(shared, sum);
      wgmma_wait<0>();
      product[1].finish(shared, sum);
    } else {
      wgmma_wait<0>();
      product[0].finish(shared, sum);
    }
  } else {
#pragma unroll 1
    while (block < blocks) {
      start(product[0]);
      wgmma_wait<0>();
      product[0].finish(shared, sum);
    }
  }
}

}  // namespace moe::cuda::grouped
