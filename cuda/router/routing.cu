#include "permute/count_chunk.cuh"
#include "router/routing.h"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"
#include "runtime/rows.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;

__device__ int64_t first_item() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ int64_t item_step() { return static_cast<int64_t>(gridDim.x) * kThreads; }

// A block a chunk of tokens.
__global__ void __launch_bounds__(kThreads)
    replay(const RoutingArgs to, const int32_t* ids, const float* weights, int32_t* chunk_rows) {
  extern __shared__ int32_t rows[];
  clear_rows(rows, to.candidates);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t valid = to.note->rows * to.top_k;
  const int64_t pairs = chunk_tokens(to.tokens) * to.top_k, from = blockIdx.x * pairs;
  const int64_t end = min(from + pairs, to.tokens * to.top_k);
  for (int64_t p = from + threadIdx.x; p < end; p += kThreads) {
    int32_t id = p < valid ? ids[p] : -1;
    if (id < -1 || id >= to.candidates) {
      to.note->error = StatusCode::invalid_argument;
      id = -1;
    }
    to.ids[p] = id;
    to.weights[p] = p < valid ? weights[p] : 0.0f;
    count_pair(rows, id);
  }
  write_rows(rows, to.candidates, chunk_rows);
}

__global__ void __launch_bounds__(kThreads)
    widen(const Rows from, const RoutingArgs args, float* to) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  for (int64_t i = first_item(); i < args.note->rows * args.candidates; i += item_step())
    to[i] =
        load_float(from.data, from.type, i / args.candidates * from.stride + i % args.candidates);
}

unsigned blocks_for(int64_t items) {
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 1056 ? blocks : 1056);
}

}  // namespace

cudaError_t launch_replay(const RoutingArgs& to, const int32_t* ids, const float* weights,
                          int32_t* chunk_rows, cudaStream_t stream) {
  if (to.tokens == 0) return cudaSuccess;
  return launch(replay, static_cast<unsigned>(num_chunks(to.tokens)), kThreads,
                sizeof(int32_t) * to.candidates, stream, to, ids, weights, chunk_rows);
}

cudaError_t launch_widen(const Rows& from, const RoutingArgs& args, float* to,
                         cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  return launch(widen, blocks_for(args.tokens * args.candidates), kThreads, 0, stream, from, args,
                to);
}

}  // namespace moe::cuda
