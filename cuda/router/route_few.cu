#include <algorithm>

#include "permute/copy_rows.cuh"
#include "permute/group_few.cuh"
#include "router/few_products.cuh"
#include "router/route_few.h"
#include "router/select_rows.cuh"
#include "runtime/enter.cuh"
#include "runtime/launch.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kTeams = 2;  // of a block, each with a candidate
constexpr int kTeamThreads = kThreads / kTeams, kTeamWarps = kTeamThreads / 32;

struct Shared {
  Beginning begin;
  double factor[kMaxFewTokens];  // of normalised rows
  float part[kTeams][kTeamWarps][kFewRows];
  alignas(16) int32_t ids[2][kMaxFewPairs];
};

// ---- the router's product: a team a candidate

__device__ int first_candidate() { return blockIdx.x * kTeams + threadIdx.x / kTeamThreads; }

// The weights are no kernel's output: they come while the kernel before ends.
__device__ void prefetch_weights(const RouteFewArgs& args, const DeviceBlock& block) {
  const int64_t candidate = first_candidate();
  if (candidate >= args.topk.rule.candidates) return;
  const int64_t bytes = args.router.hidden * (block.router_type == DType::f32 ? 4 : 2);
  const auto* row = static_cast<const std::byte*>(block.router_weight) + candidate * bytes;
  for (int64_t at = threadIdx.x % kTeamThreads * 128; at < bytes; at += kTeamThreads * 128)
    prefetch(row + at);
}

template <bool kVector, class Input>
__device__ void compute_logits(const RouteFewArgs& args, Shared& s, const Input& of_all) {
  const LogitsArgs& router = args.router;
  const DeviceBlock& block = s.begin.head.block;
  const int team = threadIdx.x / kTeamThreads, thread = threadIdx.x % kTeamThreads;
  const int candidate = first_candidate(), candidates = args.topk.rule.candidates;
  for (int64_t first = 0; first < s.begin.rows; first += kFewRows) {
    const int count = static_cast<int>(min(s.begin.rows - first, int64_t{kFewRows}));
    float sum[kFewRows] = {};
    add_products<kVector>(router.rows, router.hidden, block.router_weight, block.router_type,
                          candidate * router.hidden, first, count, thread, kTeamThreads,
                          of_all.from(first), sum);
    if (thread % 32 == 0)
#pragma unroll
      for (int r = 0; r < kFewRows; ++r) s.part[team][thread / 32][r] = sum[r];
    named_barrier(1 + team, kTeamThreads);
    if (thread < count) {
      float logit = 0;
      for (int w = 0; w < kTeamWarps; ++w) logit += s.part[team][w][thread];
      if (block.logit_bias) logit += block.logit_bias[candidate];
      router.logits[(first + thread) * candidates + candidate] = logit;
    }
    named_barrier(1 + team, kTeamThreads);
  }
}

// Rare, and needs more registers.
__device__ __noinline__ void compute_normalized(const RouteFewArgs& args, Shared& s) {
  norm_factors(args.router, 0, static_cast<int>(s.begin.rows), s.factor);
  if (first_candidate() < args.topk.rule.candidates)
    compute_logits<false>(args, s, Normalized{s.factor, s.begin.head.block.input_scale});
}

__device__ void compute_product(const RouteFewArgs& args, Shared& s, bool vector) {
  if (args.router.normalize) return compute_normalized(args, s);
  if (first_candidate() >= args.topk.rule.candidates) return;
  vector ? compute_logits<true>(args, s, AsTheyAre()) : compute_logits<false>(args, s, AsTheyAre());
}

// ---- what the experts need beside the choice; warps of all blocks share the rows

__device__ void prepare_rows(const RouteFewArgs& args, const Shared& s) {
  const int64_t rows = s.begin.rows, warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
  const int64_t warp = blockIdx.x + static_cast<int64_t>(threadIdx.x / 32) * gridDim.x;
  if (args.cast.to) copy_tokens<PlainPiece>(args.cast, 0, rows, warp, warps);
  if (args.shared_gate)
    for (int64_t row = warps - 1 - warp; row < rows; row += warps) {
      const float gate =
          gate_of_row(args.cast.from, row, args.cast.columns, s.begin.head.block.shared_gate);
      if (threadIdx.x % 32 == 0) args.shared_gate[row] = gate;
    }
}

// ---- the choice, by the last block to be done with the above

// The host's: what is no candidate becomes -1 and an error.
__device__ void replay(const RouteFewArgs& args, const Shared& s, int p) {
  const bool valid = p / args.topk.rule.top_k < s.begin.rows;
  int32_t id = valid ? args.ids_in[p] : -1;
  if (id < -1 || id >= args.topk.rule.candidates) {
    args.router.begin.note->error = StatusCode::invalid_argument;
    id = -1;
  }
  args.topk.ids[p] = id;
  args.topk.weights[p] = valid ? args.weights_in[p] : 0.0f;
}

__device__ void widen(const RouteFewArgs& args, const Shared& s) {
  const int64_t candidates = args.topk.rule.candidates;
  for (int64_t i = threadIdx.x; i < s.begin.rows * candidates; i += blockDim.x)
    args.router.logits[i] = load_float(args.logits_in.data, args.logits_in.type,
                                       i / candidates * args.logits_in.stride + i % candidates);
  __syncthreads();
}

// Whether the warp that chooses for the only token groups its choices too.
__device__ bool groups_at_once(const RouteFewArgs& args) {
  return args.topk.tokens == 1 && !args.ids_in && args.capacity == 0 && !args.ids_out;
}

__device__ GroupArgs groups_of(const RouteFewArgs& args, const Shared& s) {
  GroupArgs groups = args.groups;
  if (args.router.begin.counters) groups.slot_of_expert = s.begin.slots();
  return groups;
}

// One warp chooses for one token.
template <int kKeys>
__device__ void choose(const RouteFewArgs& args, const Shared& s, int64_t token, float* scratch) {
  rule::Rule rule = args.topk.rule;
  if (args.has_selection_bias) rule.selection_bias = s.begin.head.block.selection_bias;
  if (args.has_per_expert_scale) rule.per_expert_scale = s.begin.head.block.per_expert_scale;
  const float* logits = args.topk.logits ? args.topk.logits : args.router.logits;
  Choice choice;
  if (token < s.begin.rows)
    choice = select_row<kKeys>(args.topk, rule, logits + token * rule.candidates, token, scratch);
  write_choice(args.topk, token, choice);
  if (groups_at_once(args)) group_one_token(groups_of(args, s), choice.id);
}

// Drops the choices of an expert beyond the capacity, in row order.
__device__ int32_t limit(const RouteFewArgs& args, Shared& s, int p, int32_t id) {
  s.ids[0][p] = id;
  __syncthreads();
  int64_t rank = 0;
  for (int q = 0; q < p; ++q) rank += s.ids[0][q] == id;
  __syncthreads();
  if (id < 0 || rank < args.capacity) return id;
  args.topk.ids[p] = -1;
  args.topk.weights[p] = 0;
  add_one(&args.router.begin.note->counts.dropped);
  return -1;
}

__device__ void group_block(const RouteFewArgs& args, Shared& s) {
  const int p = threadIdx.x, top_k = args.topk.rule.top_k;
  const int pairs = static_cast<int>(args.topk.tokens) * top_k;
  if (args.ids_in && p < pairs) replay(args, s, p);
  __syncthreads();
  int32_t id = p < pairs ? args.topk.ids[p] : -1;
  if (args.capacity > 0) id = limit(args, s, p, id);
  group_few(groups_of(args, s), id, s.ids);
  if (args.ids_out && p < pairs && p / top_k < s.begin.rows) {
    args.ids_out[p] = id;
    args.weights_out[p] = args.topk.weights[p];
  }
}

__device__ void clear_counters(const RouteFewArgs& args) {
  if (!is_first_block()) return;
  for (int64_t i = threadIdx.x; i < args.num_counters; i += blockDim.x) args.counters[i] = 0;
}

// Begins the forward and does all that blocks share; says whether this block makes the choice.
template <bool kProduct>
__device__ bool prepare(const RouteFewArgs& args, Shared& s, bool vector) {
  const BeginArgs& begin = args.router.begin;
  if (threadIdx.x < 32) enter(begin, is_first_block(), &s.begin);
  __syncthreads();
  if (kProduct) prefetch_weights(args, s.begin.head.block);
  wait_for_previous_kernel();
  let_next_kernel_start();
  clear_counters(args);
  count_rows_and_note(begin, is_first_block(), &s.begin);
  if (is_first_block()) write_shared_tiles(begin, s.begin);
  if (kProduct) compute_product(args, s, vector);
  prepare_rows(args, s);
  if (!is_last_block(begin.counters)) return false;
  if (!kProduct && args.logits_in.data && !args.topk.logits) widen(args, s);
  return true;
}

template <int kKeys, bool kProduct>
__global__ void __launch_bounds__(kThreads, 2)
    route_few(const __grid_constant__ RouteFewArgs args, int select_warps, int64_t words,
              bool vector) {
  extern __shared__ float scratch[];
  __shared__ Shared s;
  if (kProduct || args.router.begin.counters) {
    if (!prepare<kProduct>(args, s, vector)) return;
  } else {
    if (threadIdx.x == 0) s.begin.rows = args.topk.tokens;
    __syncthreads();
    wait_for_previous_kernel();
    let_next_kernel_start();
    clear_counters(args);
  }
  const int warp = threadIdx.x / 32;
  if (!args.ids_in && warp < select_warps)
#pragma unroll 1
    for (int64_t token = warp; token < args.topk.tokens; token += select_warps)
      choose<kKeys>(args, s, token, scratch + warp * words);
  if (!groups_at_once(args)) group_block(args, s);
}

bool multiplies(const RouteFewArgs& args) { return !args.ids_in && args.router.rows.data; }

// A block for kTeams candidates, or as many as the rows' preparation wants; one if there is nothing
// to share, of few warps, which find a place beside the kernel in front.
struct Grid {
  unsigned blocks = 1, threads = kThreads;

  explicit Grid(const RouteFewArgs& args) {
    const int64_t tokens = args.topk.tokens;
    if (multiplies(args))
      blocks = static_cast<unsigned>((args.topk.rule.candidates + kTeams - 1) / kTeams);
    else if (args.router.begin.counters && (args.cast.to || args.shared_gate))
      blocks = 16;
    else
      threads = static_cast<unsigned>(
          std::max<int64_t>({64, tokens * 32, (tokens * args.topk.rule.top_k + 31) / 32 * 32}));
  }
};

}  // namespace

cudaError_t launch_route_few(const RouteFewArgs& args, cudaStream_t stream) {
  static_assert(kThreads >= kMaxFewPairs && kMaxFewTokens * kMaxTopK <= kMaxFewPairs &&
                kMaxFewTokens * 32 <= kThreads);
  if (!valid_topk(args.topk) || args.topk.tokens > kMaxFewTokens) return cudaErrorInvalidValue;
  if (args.topk.tokens == 0) return cudaSuccess;
  constexpr size_t kMost = 200 << 10;
  const rule::Rule& rule = args.topk.rule;
  const int64_t words = args.ids_in ? 0 : scratch_words(rule);
  const Grid grid(args);
  const int warps = warps_within(rule, kMost, args.topk.tokens);
  const bool product = multiplies(args);
  const auto kernel =
      product ? MOE_FOR_KEYS(route_few, rule, true) : MOE_FOR_KEYS(route_few, rule, false);
  const bool vector = args.router.hidden % 8 == 0 && aligned_by_8(args.router.rows);
  return launch(kernel, grid.blocks, grid.threads, warps * words * sizeof(float), stream, args,
                warps, words, vector);
}

}  // namespace moe::cuda
