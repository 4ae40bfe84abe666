// A consumer warpgroup's part of a w8a8 tile, stage after stage.
#pragma once

#include "gemm/multiply.cuh"
#include "gemm/w8a8_tile.cuh"

namespace moe::cuda::grouped {

// sum += product, scaled; `half`: which of the part's. Columns are 8 gates and 8 ups in turn, or
// plain ones.
template <typename C>
__device__ __forceinline__ void add_half(float (&sum)[C::kN / 2], const float (&product)[C::kN / 2],
                                         const StageScales& scales, int half) {
  float by[2][2];
#pragma unroll
  for (int row = 0; row < 2; ++row)
#pragma unroll
    for (int parity = 0; parity < 2; ++parity)
      by[row][parity] = scales.token[row] * scales.weight[C::kActivate ? parity : half];
#pragma unroll
  for (int i = 0; i < C::kN / 2; ++i) sum[i] = fmaf(product[i], by[i / 2 % 2][i / 4 % 2], sum[i]);
}

// The consumers take turns at the matrix units, so that one adds while the other multiplies; left
// to themselves they would multiply together, half as fast each, and then add together.
class Turns {
 public:
  __device__ explicit Turns(int consumer) : own_(2 + consumer), other_(3 - consumer) {
    if (own_ > other_) pass();
  }
  __device__ void wait() const { named_barrier(own_, kBoth); }
  __device__ void pass() const { named_arrive(other_, kBoth); }
  __device__ void end() const {
    if (own_ < other_) wait();
  }

 private:
  static constexpr int kBoth = 256;
  int own_, other_;  // named barriers: it is this consumer's turn, the other's
};

// A stage's product is scaled and added outside the matrix units.
template <typename C, int kHalves>
__device__ __forceinline__ void multiply_tokens(const GroupedGemmArgs& args,
                                                const Shared<C>& shared, Cursor<C::kStages>* cursor,
                                                const Turns& turns, const Part& part,
                                                float (&sum)[kHalves][C::kN / 2]) {
#pragma unroll
  for (int i = 0; i < kHalves * C::kN / 2; ++i) sum[i / (C::kN / 2)][i % (C::kN / 2)] = 0;
#pragma unroll 1
  for (int left = blocks_of<C>(args); left > 0; --left, cursor->next()) {
    const int stage = cursor->stage;
    StageScales scales;
    barrier_wait(shared.full(stage), cursor->phase);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      float product[C::kN / 2];
      turns.wait();
      multiply_stage<Element::e4m3, C::kN>(shared.tokens(stage) + part.token * 128,
                                           shared.weights(stage) + (part.half + half) * C::kN * 128,
                                           product, false);
      turns.pass();
      if (half == 0) scales = load_scales(shared, stage, part);
      wgmma_wait<0>();
      if (half == kHalves - 1 && threadIdx.x % 32 == 0) release(shared, stage);
      add_half<C>(sum[half], product, scales, half);
    }
  }
}

}  // namespace moe::cuda::grouped
