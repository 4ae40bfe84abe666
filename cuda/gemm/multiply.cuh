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
  const WeightScales scales(args, work.slot, work.weight_row + consumer * 64, args.activated,
                            blocks);
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

// The same by each warp for 16 of the consumer's rows, in either type: few columns leave the matrix
// units idle, and what counts is how soon a stage is done with. A warpgroup's product of 8 columns
// takes three times as long.
template <typename C, int kN>
class WarpProduct {
 public:
  // By 128 bytes of each weight row.
  __device__ __forceinline__ void add(const Shared<C>& shared, int stage, int consumer) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const uint32_t rows = rows_of(shared, stage, consumer) + warp * 16 * 128;
#pragma unroll
    for (int pair = 0; pair < C::kDepth / 32; ++pair) {  // of 16 inputs
      uint32_t weights[2][4];
      if constexpr (C::kScaled) {
        load_codes(rows + swizzled(lane % 16, 2 * pair + lane / 16), weights);
      } else {
        load_matrices(weights[0], rows + swizzled(lane % 16, 4 * pair + lane / 16));
        load_matrices(weights[1], rows + swizzled(lane % 16, 4 * pair + 2 + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        uint32_t tokens[4];  // two of 8 inputs for each product
        load_matrices(tokens, shared.tokens(stage, pair / 2) +
                                  swizzled(8 * n + lane % 8, pair % 2 * 4 + lane / 8));
        moe::cuda::multiply_bf16(part_[0][n], weights[0], tokens[0], tokens[1]);
        moe::cuda::multiply_bf16(part_[1][n], weights[1], tokens[2], tokens[3]);
      }
    }
    __syncwarp();
    if (lane == 0) release(shared, stage);
  }
  // Adds it, times a scale each for the first and second 8 rows, to the sum; then it is 0 again.
  __device__ __forceinline__ void move(float low, float high, float (&sum)[kN / 2]) {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      float &even = part_[0][i / 4][i % 4], &odd = part_[1][i / 4][i % 4];
      sum[i] = fmaf(even + odd, i % 4 < 2 ? low : high, sum[i]);
      even = odd = 0;
    }
  }

 private:
  float part_[2][kN / 8][4] = {};  // two, so that fewer products wait for the one before

  // 32 inputs.
  __device__ __forceinline__ void load_codes(uint32_t from, uint32_t (&weights)[2][4]) {
    uint32_t words[4];  // 16 columns of rows 0 and 8, then the next 16
    load_matrices(words, from);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // gemm/layout.h: e4m3_column()
      weights[i / 2][i % 2] = widen(words[i]);
      weights[i / 2][i % 2 + 2] = widen(words[i] << 8);
    }
  }
};

// The scales of a stage: what its note has; or what the lanes have loaded, 32 stages at a time.
template <typename C>
class ScalesAhead {
 public:
  __device__ ScalesAhead(const GroupedGemmArgs& args, const Work& work, int consumer, int blocks)
      : of_(args, work.slot, work.weight_row + consumer * 64, args.activated, blocks),
        blocks_(blocks) {}
  __device__ __forceinline__ float2 at(const Shared<C>& shared, int stage, int block) {
    if constexpr (C::kStageScales) return load_shared_2(shared.scales(stage));
    if (block % 32 == 0) {
      const int mine = min(block + static_cast<int>(threadIdx.x % 32), blocks_ - 1);
      lane_ = {__ldg(of_.low + mine), __ldg(of_.high + mine)};
    }
    return {__shfl_sync(~0u, lane_.x, block % 32), __shfl_sync(~0u, lane_.y, block % 32)};
  }

 private:
  WeightScales of_;
  int blocks_;
  float2 lane_;
};

template <typename C, int kN>
__device__ __forceinline__ void multiply_by_warps(const GroupedGemmArgs& args,
                                                  const Shared<C>& shared,
                                                  Cursor<C::kStages>* cursor, int consumer,
                                                  const Work& work, float (&sum)[kN / 2]) {
  const int blocks = blocks_of<C>(args);
  WarpProduct<C, kN> product;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum[i] = 0;
  if constexpr (C::kScaled) {
    ScalesAhead<C> ahead(args, work, consumer, blocks);
#pragma unroll 1
    for (int block = 0; block < blocks; ++block, cursor->next()) {
      barrier_wait(shared.full(cursor->stage), cursor->phase);
      const float2 scale = ahead.at(shared, cursor->stage, block);
      product.add(shared, cursor->stage, consumer);
      product.move(scale.x, scale.y, sum);
    }
  } else {
#pragma unroll 1
    for (int block = 0; block < blocks; ++block, cursor->next()) {
      barrier_wait(shared.full(cursor->stage), cursor->phase);
      product.add(shared, cursor->stage, consumer);
    }
    product.move(1, 1, sum);
  }
}

}  // namespace moe::cuda::grouped
