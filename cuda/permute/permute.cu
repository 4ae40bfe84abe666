#include "permute/copy_rows.cuh"
#include "permute/permute.h"
#include "runtime/launch.cuh"
#include "runtime/note.h"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;

// Warps whose pairs are ranked at a time, as many as have room for their counts.
__host__ __device__ int ranking_warps(int experts) { return experts <= 2048 ? kWarps : kWarps / 2; }
__host__ __device__ int count_pitch(int experts) { return (experts + 3) / 4 * 4; }

// Of one chunk, in shared memory.
struct Chunk {
  int32_t* next;    // (experts): the row of the next pair; before that, the pairs of earlier chunks
  int32_t* end;     // (experts): the row after the last; before that, the pairs of all chunks
  uint8_t* counts;  // (ranking warps, count_pitch): pairs that a warp has
  int64_t from, to;  // tokens

  __device__ Chunk(const PermuteArgs& args, int32_t* shared) {
    next = shared;
    end = next + args.num_experts;
    counts = reinterpret_cast<uint8_t*>(end + args.num_experts);
    from = blockIdx.x * chunk_tokens(args.tokens);
    to = min(from + chunk_tokens(args.tokens), args.tokens);
  }
};

// ---- rows of earlier chunks and of all

__device__ void add_chunks(const PermuteArgs& args, const Chunk& chunk) {
  const int experts = args.num_experts, chunks = gridDim.x;
  const int lanes = min(kThreads, (experts + 31) / 32 * 32);  // threads that look at one chunk
  const int groups = kThreads / lanes, group = threadIdx.x / lanes;
  if (group >= groups) return;
  for (int e = threadIdx.x % lanes; e < experts; e += lanes) {
    int before = 0, all = 0;
#pragma unroll 8
    for (int c = group; c < chunks; c += groups) {
      const int rows = args.chunk_rows[static_cast<int64_t>(c) * experts + e];
      all += rows;
      before += c < static_cast<int>(blockIdx.x) ? rows : 0;
    }
    if (before > 0) atomicAdd(&chunk.next[e], before);
    if (all > 0) atomicAdd(&chunk.end[e], all);
  }
}

// Of all threads before this one; all call it once.
__device__ uint64_t sum_before(uint64_t value) {
  __shared__ uint64_t of_warp[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto scan = [lane](uint64_t sum) {
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const uint64_t below = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += below;
    }
    return sum;
  };
  const uint64_t within = scan(value);
  if (lane == 31) of_warp[warp] = within;
  __syncthreads();
  if (warp == 0) of_warp[lane] = scan(of_warp[lane]) - of_warp[lane];
  __syncthreads();
  return of_warp[warp] + within - value;
}

// Turns pairs before and in all into rows. The first block writes the tiles.
__device__ void place_experts(const PermuteArgs& args, const Chunk& chunk) {
  const bool first = blockIdx.x == 0;
  const int each = (args.num_experts + kThreads - 1) / kThreads;
  const int begin = threadIdx.x * each, end = min(begin + each, args.num_experts);
  const auto rows_of = [&](int e) {
    return args.capacity > 0 ? static_cast<int>(min(int64_t{chunk.end[e]}, args.capacity))
                             : chunk.end[e];
  };
  const auto tiles_of = [&](int e, int rows) {
    return first && rows > 0 && args.slot_of_expert[e] >= 0
               ? (rows + args.tile_tokens - 1) / args.tile_tokens
               : 0;
  };
  uint64_t sum = 0;  // rows and tiles, 32 bits each
  for (int e = begin; e < end; ++e) {
    const int rows = rows_of(e);
    sum += static_cast<uint64_t>(rows) << 32 | static_cast<uint32_t>(tiles_of(e, rows));
  }
  const uint64_t before = sum_before(sum);
  int row = static_cast<int>(before >> 32), tile = static_cast<int>(before);
  for (int e = begin; e < end; ++e) {
    const int rows = rows_of(e), tiles = tiles_of(e, rows);
    for (int i = 0; i < tiles; ++i)
      args.tiles[tile + i] = {args.slot_of_expert[e], tile, tiles, row, rows, e, {0, 0}};
    if (first) count_rows(args, e, rows);
    chunk.next[e] += row;
    row += rows;
    tile += tiles;
    chunk.end[e] = row;
  }
  if (first && threadIdx.x == kThreads - 1) *args.tile_count = tile;
}

// ---- pairs

__device__ void drop(const PermuteArgs& args, int64_t pair) {
  args.ids[pair] = -1;
  args.weights[pair] = 0;
  atomicAdd(reinterpret_cast<unsigned long long*>(&args.note->counts.dropped), 1ull);
}

// `row`: the permuted one, or -1.
__device__ void place_pair(const PermuteArgs& args, int64_t pair, int32_t id, int32_t row) {
  const int64_t token = pair / args.top_k;
  args.row_of_pair[pair] = row;
  if (row >= 0) args.row_token[row] = static_cast<int32_t>(token);
  if (!args.ids_out || token >= args.note->rows) return;
  args.ids_out[pair] = row >= 0 ? id : -1;
  args.weights_out[pair] = args.weights[pair];
}

// The pairs in order, some at a time: a warp finds those of its lanes that are alike, and adds what
// the warps before it have.
__device__ void place_pairs(const PermuteArgs& args, const Chunk& chunk) {
  const int warps = ranking_warps(args.num_experts), pitch = count_pitch(args.num_experts);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t end = chunk.to * args.top_k;
  for (int64_t base = chunk.from * args.top_k; base < end; base += warps * 32) {
    for (int i = threadIdx.x; i < warps * pitch / 4; i += kThreads)
      reinterpret_cast<uint32_t*>(chunk.counts)[i] = 0;
    __syncthreads();
    const int64_t pair = base + threadIdx.x;
    const bool inside = warp < warps && pair < end;
    const int32_t id = inside ? args.ids[pair] : -1;
    const unsigned alike = __match_any_sync(~0u, id);
    const int rank = __popc(alike & ((1u << lane) - 1));
    const bool leads = id >= 0 && rank == 0;
    if (leads) chunk.counts[warp * pitch + id] = static_cast<uint8_t>(__popc(alike));
    __syncthreads();
    int32_t row = -1;
    if (id >= 0) {
      row = chunk.next[id] + rank;
      for (int w = 0; w < warp; ++w) row += chunk.counts[w * pitch + id];
      if (row >= chunk.end[id]) {
        drop(args, pair);
        row = -1;
      }
    }
    if (inside) place_pair(args, pair, id, row);
    __syncthreads();
    if (leads) atomicAdd(&chunk.next[id], __popc(alike));
  }
}

__device__ void copy(const CopyRowsArgs& args, const Chunk& chunk) {
  if (!args.to) return;
  const int64_t to = args.note ? min(chunk.to, args.note->rows) : chunk.to;
  const int warp = threadIdx.x / 32;
  if (args.scales)
    copy_tokens<QuantizedPiece>(args, chunk.from, to, warp, kWarps);
  else if (args.weights)
    copy_tokens<WeightedPiece>(args, chunk.from, to, warp, kWarps);
  else
    copy_tokens<PlainPiece>(args, chunk.from, to, warp, kWarps);
}

__global__ void __launch_bounds__(kThreads, 1) permute(const __grid_constant__ PermuteArgs args) {
  extern __shared__ int32_t shared[];
  const Chunk chunk(args, shared);
  for (int e = threadIdx.x; e < 2 * args.num_experts; e += kThreads) shared[e] = 0;
  __syncthreads();
  wait_for_previous_kernel();
  let_next_kernel_start();
  add_chunks(args, chunk);
  __syncthreads();
  place_experts(args, chunk);
  __syncthreads();
  place_pairs(args, chunk);
  __syncthreads();
  copy(args.cast, chunk);
  copy(args.copy, chunk);
}

}  // namespace

cudaError_t launch_permute(const PermuteArgs& args, cudaStream_t stream) {
  if (args.num_experts < 1 || args.num_experts > kMaxExperts || args.tile_tokens < 1 ||
      !valid_copy(args.cast) || !valid_copy(args.copy))
    return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  const size_t bytes =
      2 * sizeof(int32_t) * args.num_experts +
      static_cast<size_t>(ranking_warps(args.num_experts)) * count_pitch(args.num_experts);
  return launch(permute, static_cast<unsigned>(num_chunks(args.tokens)), kThreads, bytes, stream,
                args);
}

}  // namespace moe::cuda
