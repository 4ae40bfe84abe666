#include "router/topk.h"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

// One warp chooses for one row. Lane l holds the logits of experts l + 32 i.
template <int kPerLane>
__device__ void select_row(const TopKArgs& args, int64_t token) {
  const int lane = threadIdx.x % 32;
  const float* row = args.logits + token * args.num_experts;
  float logit[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i)
    logit[i] = lane + 32 * i < args.num_experts ? row[lane + 32 * i] : -INFINITY;

  float my_weight = 0, largest = 0, sum = 0;
  int my_id = -1;
  for (int place = 0; place < args.top_k; ++place) {
    float best = -INFINITY;
    int id = 1 << 30;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (logit[i] > best) best = logit[i], id = lane + 32 * i;
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
      const float other = __shfl_xor_sync(~0u, best, d);
      const int other_id = __shfl_xor_sync(~0u, id, d);
      if (other > best || (other == best && other_id < id)) best = other, id = other_id;
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (lane + 32 * i == id) logit[i] = -INFINITY;
    if (id == 1 << 30) break;  // no candidate is left
    if (place == 0) largest = best;
    const float weight = __expf(best - largest);
    sum += weight;
    if (lane == place) my_weight = weight, my_id = id;
  }
  if (lane < args.top_k) {
    args.ids[token * args.top_k + lane] = my_id;
    args.weights[token * args.top_k + lane] = my_id < 0 ? 0.0f : my_weight / sum;
  }
}

template <int kPerLane>
__global__ void topk(const TopKArgs args) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t token = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (token < args.tokens) select_row<kPerLane>(args, token);
}

constexpr int kThreads = 1024;

template <int kPerLane>
__global__ void __launch_bounds__(kThreads)
    topk_permute(const TopKArgs args, const PermuteArgs out) {
  __shared__ int32_t count[kMaxExperts], begin[kMaxExperts];
  __shared__ int16_t ids[kMaxFusedTokens * 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int pairs = static_cast<int>(args.tokens) * args.top_k;
  for (int e = threadIdx.x; e < args.num_experts; e += kThreads) count[e] = 0;
  wait_for_previous_kernel();
  let_next_kernel_start();
  for (int token = warp; token < args.tokens; token += kThreads / 32)
    select_row<kPerLane>(args, token);
  __syncthreads();
  for (int p = threadIdx.x; p < pairs; p += kThreads) {
    const int id = args.ids[p];
    ids[p] = static_cast<int16_t>(id);
    if (id >= 0)
      atomicAdd(&count[id], 1);
    else
      out.row_of_pair[p] = -1;
  }
  __syncthreads();

  if (warp == 0) {  // rows and tiles before each expert
    int row = 0, tile = 0;
    for (int base = 0; base < args.num_experts; base += 32) {
      const int e = base + lane;
      const int rows = e < args.num_experts ? count[e] : 0;
      const int tiles = (rows + out.tile_tokens - 1) / out.tile_tokens;
      int sum = rows << 16 | tiles;  // both below 2^15: at most 64 * 32 pairs
      for (int d = 1; d < 32; d *= 2) {
        const int below = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += below;
      }
      const int first_row = row + (sum >> 16) - rows, first = tile + (sum & 0xFFFF) - tiles;
      if (e < args.num_experts) begin[e] = first_row;
      for (int i = 0; i < tiles; ++i)
        out.tiles[first + i] = {out.slot_of_expert[e], first, tiles, first_row, rows, e, {0, 0}};
      const int total = __shfl_sync(~0u, sum, 31);
      row += total >> 16;
      tile += total & 0xFFFF;
    }
    if (lane == 0) *out.tile_count = tile;
  }
  __syncthreads();

  // A pair's place in its expert: the earlier pairs of the same expert.
  for (int p = threadIdx.x; p < pairs; p += kThreads) {
    const int id = ids[p];
    if (id < 0) continue;
    int at = begin[id];
    if (count[id] > 1)
      for (int q = 0; q < p; ++q) at += ids[q] == id;
    out.row_token[at] = p / args.top_k;
    out.row_of_pair[p] = at;
  }
}

// Calls `f` with the number of logits a lane holds.
template <typename F>
cudaError_t with_width(int num_experts, F f) {
  if (num_experts <= 128) return f(std::integral_constant<int, 4>());
  if (num_experts <= 512) return f(std::integral_constant<int, 16>());
  return f(std::integral_constant<int, kMaxExperts / 32>());
}

bool valid(const TopKArgs& args) {
  return args.num_experts >= 1 && args.num_experts <= kMaxExperts && args.top_k >= 1 &&
         args.top_k <= 32 && args.top_k <= args.num_experts;
}

}  // namespace

cudaError_t launch_topk(const TopKArgs& args, cudaStream_t stream) {
  if (!valid(args)) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  return with_width(args.num_experts, [&](auto width) {
    const unsigned blocks = static_cast<unsigned>((args.tokens + 3) / 4);
    return launch(topk<decltype(width)::value>, blocks, 128, 0, stream, args);
  });
}

cudaError_t launch_topk_permute(const TopKArgs& args, const PermuteArgs& out, cudaStream_t stream) {
  if (!valid(args) || args.tokens > kMaxFusedTokens) return cudaErrorInvalidValue;
  return with_width(args.num_experts, [&](auto width) {
    return launch(topk_permute<decltype(width)::value>, 1, kThreads, 0, stream, args, out);
  });
}

}  // namespace moe::cuda
