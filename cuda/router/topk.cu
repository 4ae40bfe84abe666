#include <algorithm>

#include "permute/count_chunk.cuh"
#include "router/select_rows.cuh"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

constexpr int kMostThreads = 1024;
constexpr size_t kSharedBytes = 80 << 10;  // every GPU has as much

// A block a chunk of tokens, a warp a token at a time. The counts come first in shared memory, then
// what the first `select_warps` work in.
template <int kKeys>
__global__ void __launch_bounds__(kMostThreads)
    topk(const __grid_constant__ TopKArgs args, int select_warps, int64_t words) {
  extern __shared__ int32_t rows[];
  const rule::Rule& rule = args.rule;
  float* scratch = reinterpret_cast<float*>(rows + (args.chunk_rows ? rule.candidates : 0));
  const int warp = threadIdx.x / 32;
  if (args.chunk_rows) clear_rows(rows, rule.candidates);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t valid = args.valid_rows ? *args.valid_rows : args.tokens;
  const int64_t from = blockIdx.x * chunk_tokens(args.tokens);
  const int64_t to = min(from + chunk_tokens(args.tokens), args.tokens);
  if (warp < select_warps)
    for (int64_t token = from + warp; token < to; token += select_warps) {
      Choice choice;
      if (token < valid)
        choice = select_row<kKeys>(args, rule, args.logits + token * rule.candidates, token,
                                   scratch + warp * words);
      write_choice(args, token, choice);
      if (args.chunk_rows) count_pair(rows, choice.id);
    }
  if (args.chunk_rows) write_rows(rows, rule.candidates, args.chunk_rows);
}

}  // namespace

cudaError_t launch_topk(const TopKArgs& args, cudaStream_t stream) {
  if (!valid_topk(args)) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  const int64_t words = scratch_words(args.rule);
  const size_t counts = args.chunk_rows ? sizeof(int32_t) * args.rule.candidates : 0;
  const int64_t wanted = std::min<int64_t>(chunk_tokens(args.tokens), kMostThreads / 32);
  const int warps = warps_within(args.rule, kSharedBytes - counts, wanted);
  return launch(MOE_FOR_KEYS(topk, args.rule), static_cast<unsigned>(num_chunks(args.tokens)),
                static_cast<unsigned>(warps * 32), counts + warps * words * sizeof(float), stream,
                args, warps, words);
}

}  // namespace moe::cuda
