#include "permute/permute.h"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;

__device__ int tiles_of(const PermuteArgs& args, int expert, int rows) {
  if (rows == 0 || args.slot_of_expert[expert] < 0) return 0;
  return (rows + args.tile_tokens - 1) / args.tile_tokens;
}

// One block an expert. Each block counts all ids, which is cheaper than a second kernel: the ids
// are a few hundred KiB in L2.
__global__ void __launch_bounds__(kThreads) permute(const PermuteArgs args) {
  __shared__ int32_t count[kMaxExperts];
  __shared__ int32_t warp_first[kWarps];
  __shared__ int32_t begin, first_tile;

  const int expert = blockIdx.x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int pairs = static_cast<int>(args.tokens * args.top_k);
  for (int e = threadIdx.x; e < args.num_experts; e += kThreads) count[e] = 0;
  if (threadIdx.x == 0) begin = first_tile = 0;
  __syncthreads();
  wait_for_previous_kernel();
  let_next_kernel_start();

  // Each warp counts one contiguous part, so that positions are stable.
  const int part = (pairs + kWarps * 32 - 1) / (kWarps * 32) * 32;
  const int from = min(warp * part, pairs), to = min(from + part, pairs);
  int mine = 0;
  for (int p = from + lane; p < to; p += 32) {
    const int id = args.ids[p];
    if (id >= 0) atomicAdd(&count[id], 1);
    mine += id == expert;
    if (expert == 0 && id < 0) args.row_of_pair[p] = -1;
  }
  mine = __reduce_add_sync(~0u, mine);
  if (lane == 0) warp_first[warp] = mine;
  __syncthreads();

  int rows_before = 0, tiles_before = 0;
  for (int e = threadIdx.x; e < expert; e += kThreads) {
    rows_before += count[e];
    tiles_before += tiles_of(args, e, count[e]);
  }
  rows_before = __reduce_add_sync(~0u, rows_before);
  tiles_before = __reduce_add_sync(~0u, tiles_before);
  if (lane == 0 && rows_before > 0) {
    atomicAdd(&begin, rows_before);
    atomicAdd(&first_tile, tiles_before);
  }
  if (warp == 0) {  // exclusive prefix over the parts
    const int n = warp_first[lane];
    int sum = n;
    for (int d = 1; d < 32; d *= 2) {
      const int below = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += below;
    }
    warp_first[lane] = sum - n;
  }
  __syncthreads();

  const int rows = count[expert];
  const int tiles = tiles_of(args, expert, rows);
  if (threadIdx.x == 0) count_rows(args, expert, rows);
  if (expert == args.num_experts - 1 && threadIdx.x == 0) *args.tile_count = first_tile + tiles;
  for (int i = threadIdx.x; i < tiles; i += kThreads)
    args.tiles[first_tile + i] = {
        args.slot_of_expert[expert], first_tile, tiles, begin, rows, expert, {0, 0}};
  int row = begin + warp_first[warp];
  for (int p = from; p < to; p += 32) {
    const bool hit = p + lane < to && args.ids[p + lane] == expert;
    const unsigned hits = __ballot_sync(~0u, hit);
    if (hit) {
      const int at = row + __popc(hits & ((1u << lane) - 1));
      args.row_token[at] = (p + lane) / args.top_k;
      args.row_of_pair[p + lane] = at;
    }
    row += __popc(hits);
  }
}

}  // namespace

cudaError_t launch_permute(const PermuteArgs& args, cudaStream_t stream) {
  if (args.num_experts < 1 || args.num_experts > kMaxExperts || args.tile_tokens < 1)
    return cudaErrorInvalidValue;
  return launch(permute, args.num_experts, kThreads, 0, stream, args);
}

}  // namespace moe::cuda
