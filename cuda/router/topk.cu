#include <algorithm>

#include "router/topk.h"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

constexpr size_t kSharedBytes = 44 << 10;  // without asking; 4 KiB are static

// What one warp works in.
__host__ __device__ int64_t scratch_words(const rule::Rule& rule) {
  return rule::scratch_floats(rule.candidates, rule.num_groups) + kMaxTopK;
}

__device__ void add(int64_t* count) {
  atomicAdd(reinterpret_cast<unsigned long long*>(count), 1ull);
}

// The commonest rule, which a kernel of its own makes short: softmax over the chosen logits.
bool is_plain(const rule::Rule& r) {
  return r.selection == Selection::top_k && r.num_groups == 1 && !r.selection_bias &&
         r.weighting == Weighting::softmax_of_selected_logits && r.normalize == Normalize::none &&
         r.softcap == 0 && !r.per_expert_scale;
}

// `r` with what is_plain() found as constants.
template <bool kPlain>
__device__ rule::Rule known(rule::Rule r) {
  if (!kPlain) return r;
  r.selection = Selection::top_k;
  r.num_groups = 1;
  r.selection_bias = r.per_expert_scale = nullptr;
  r.weighting = Weighting::softmax_of_selected_logits;
  r.normalize = Normalize::none;
  r.softcap = 0;
  return r;
}

// Copies a row with four loads in flight; each lane the values that it looks after.
__device__ void stage(const float* row, int32_t n, float* out) {
  const int lane = threadIdx.x % 32;
  for (int32_t base = lane; base < n; base += 128) {
    float value[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = base + 32 * i < n ? row[base + 32 * i] : 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (base + 32 * i < n) out[base + 32 * i] = value[i];
  }
}

// One warp chooses for one row. The plain rule keeps the keys as the logits, so they share memory.
template <bool kPlain>
__device__ void select_row(const TopKArgs& args, int64_t token, int64_t valid, float* scratch) {
  const rule::WarpTeam team;
  const int lane = team.lane(0), top_k = args.rule.top_k;
  int32_t* ids = reinterpret_cast<int32_t*>(scratch);
  float* weights = args.weights + token * top_k;
  if (token < valid) {
    const int64_t first = token * args.rule.candidates;
    float* keys = scratch + kMaxTopK;
    if (kPlain) stage(args.logits + first, args.rule.candidates, keys);
    const rule::Row row = {kPlain ? keys : args.logits + first,
                           args.mask ? args.mask + first : nullptr,
                           args.token_ids ? args.token_ids[token] : 0, ids, weights};
    rule::Rule rule = known<kPlain>(args.rule);
    if (!kPlain && args.token_experts) rule.token_experts = *args.token_experts;
    const rule::Outcome outcome = rule::select(team, rule, row, keys);
    if (lane == 0 && args.counts) {
      if (outcome.nonfinite) add(&args.counts->nonfinite_rows);
      if (outcome.chosen < top_k) add(&args.counts->short_rows);
    }
  } else if (lane < top_k) {
    ids[lane] = -1;
    weights[lane] = 0;
  }
  team.sync();
  if (lane < top_k) args.ids[token * top_k + lane] = ids[lane];
  team.sync();  // the scratch is free for the next row
}

__device__ int64_t valid_rows(const TopKArgs& args) {
  return args.valid_rows ? *args.valid_rows : args.tokens;
}

template <bool kPlain>
__global__ void __launch_bounds__(128) topk(const TopKArgs args) {
  extern __shared__ float shared[];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * warps + warp;
  if (token < args.tokens)
    select_row<kPlain>(args, token, valid_rows(args), shared + warp * scratch_words(args.rule));
}

constexpr int kThreads = 1024;

// The first `select_warps` choose; the memory they worked in then holds the counts.
template <bool kPlain>
__global__ void __launch_bounds__(kThreads)
    topk_permute(const TopKArgs args, const PermuteArgs out, int select_warps) {
  extern __shared__ float shared[];
  __shared__ int16_t ids[kMaxFusedTokens * kMaxTopK];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int experts = args.rule.candidates, top_k = args.rule.top_k;
  const int pairs = static_cast<int>(args.tokens) * top_k;
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (warp < select_warps)
    for (int token = warp; token < args.tokens; token += select_warps)
      select_row<kPlain>(args, token, valid_rows(args), shared + warp * scratch_words(args.rule));
  __syncthreads();
  int32_t* count = reinterpret_cast<int32_t*>(shared);
  int32_t* begin = count + experts;
  for (int e = threadIdx.x; e < experts; e += kThreads) count[e] = 0;
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
    for (int base = 0; base < experts; base += 32) {
      const int e = base + lane;
      const int rows = e < experts ? count[e] : 0;
      const int slot = rows > 0 ? out.slot_of_expert[e] : -1;
      const int tiles = slot < 0 ? 0 : (rows + out.tile_tokens - 1) / out.tile_tokens;
      int sum = rows << 16 | tiles;  // both below 2^15: at most 64 * 32 pairs
      for (int d = 1; d < 32; d *= 2) {
        const int below = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += below;
      }
      const int first_row = row + (sum >> 16) - rows, first = tile + (sum & 0xFFFF) - tiles;
      if (e < experts) begin[e] = first_row;
      count_rows(out, e, rows);
      for (int i = 0; i < tiles; ++i)
        out.tiles[first + i] = {slot, first, tiles, first_row, rows, e, {0, 0}};
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
    out.row_token[at] = p / top_k;
    out.row_of_pair[p] = at;
  }
}

bool valid(const TopKArgs& args) {
  const rule::Rule& r = args.rule;
  return r.candidates >= 1 && r.candidates <= kMaxExperts && r.top_k >= 1 && r.top_k <= kMaxTopK &&
         r.num_groups >= 1 && r.num_groups <= r.candidates &&
         (r.selection != Selection::sparsemixer || r.top_k <= 2);
}

// Most warps, at least one, whose scratch fits in `bytes`.
int warps_within(const rule::Rule& rule, size_t bytes, int64_t wanted) {
  const int64_t fit = static_cast<int64_t>(bytes / (scratch_words(rule) * sizeof(float)));
  return static_cast<int>(std::clamp<int64_t>(fit, 1, wanted));
}

}  // namespace

cudaError_t launch_topk(const TopKArgs& args, cudaStream_t stream) {
  if (!valid(args)) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  const int warps = warps_within(args.rule, kSharedBytes, 4);
  const unsigned blocks = static_cast<unsigned>((args.tokens + warps - 1) / warps);
  const size_t bytes = warps * scratch_words(args.rule) * sizeof(float);
  const auto kernel = is_plain(args.rule) ? topk<true> : topk<false>;
  return launch(kernel, blocks, warps * 32, bytes, stream, args);
}

cudaError_t launch_topk_permute(const TopKArgs& args, const PermuteArgs& out, cudaStream_t stream) {
  if (!valid(args) || args.tokens > kMaxFusedTokens || out.num_experts != args.rule.candidates)
    return cudaErrorInvalidValue;
  int device = 0, most = 0;  // bytes of shared memory that a block may have
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  const size_t limit = static_cast<size_t>(most) - sizeof(int16_t) * kMaxFusedTokens * kMaxTopK;
  const int warps = warps_within(args.rule, limit, std::clamp<int64_t>(args.tokens, 1, 32));
  const size_t bytes = std::max(warps * scratch_words(args.rule) * sizeof(float),
                                2 * sizeof(int32_t) * args.rule.candidates);
  const auto kernel = is_plain(args.rule) ? topk_permute<true> : topk_permute<false>;
  return launch(kernel, 1, kThreads, bytes, stream, args, out, warps);
}

}  // namespace moe::cuda
