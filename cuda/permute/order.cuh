// In which order a token's experts are summed: that of their indices, which is that of their rows.
#pragma once

#include "permute/combine.h"

namespace moe::cuda {

// A token's places in ascending order of expert; those without one are left out.
struct Order {
  int32_t row[32];  // -1: a zero expert
  float weight[32];
  int used;
};

// By one warp.
__device__ inline void sort_places(const CombineArgs& args, int64_t token, Order* order) {
  const int place = threadIdx.x % 32;
  const bool valid = place < args.top_k;
  const int64_t pair = token * args.top_k + place;
  const int32_t mine = valid ? __ldcg(args.row_of_pair + pair) : -1;
  int rank = 0, count = 0;
  for (int j = 0; j < args.top_k; ++j) {
    const int32_t other = __shfl_sync(~0u, mine, j);
    rank += other >= 0 && other < mine;
    count += other >= 0;
  }
  if (mine >= 0) {
    const bool zero = args.ids && __ldcg(args.ids + pair) >= args.num_experts;
    order->row[rank] = zero ? -1 : mine;
    order->weight[rank] = args.weights_on_input && !zero ? 1.0f : __ldcg(args.weights + pair);
  }
  if (place == 0) order->used = count;
}

}  // namespace moe::cuda
