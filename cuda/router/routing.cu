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

__global__ void __launch_bounds__(kThreads)
    replay(const RoutingArgs to, const int32_t* ids, const float* weights) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t valid = to.note->rows * to.top_k;
  for (int64_t p = first_item(); p < to.tokens * to.top_k; p += item_step()) {
    int32_t id = p < valid ? ids[p] : -1;
    if (id < -1 || id >= to.candidates) {
      to.note->error = StatusCode::invalid_argument;
      id = -1;
    }
    to.ids[p] = id;
    to.weights[p] = p < valid ? weights[p] : 0.0f;
  }
}

__global__ void __launch_bounds__(kThreads)
    record(const RoutingArgs from, int32_t* ids, float* weights) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  for (int64_t p = first_item(); p < from.note->rows * from.top_k; p += item_step()) {
    ids[p] = from.ids[p];
    weights[p] = from.weights[p];
  }
}

// A block an expert; each warp counts one contiguous part of the pairs, so that order holds.
__global__ void __launch_bounds__(1024) limit(const RoutingArgs args, int64_t capacity) {
  __shared__ int64_t before[32];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int32_t expert = blockIdx.x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t pairs = args.note->rows * args.top_k;
  const int64_t part = (pairs + 1023) / 1024 * 32;
  const int64_t from = min(warp * part, pairs), to = min(from + part, pairs);
  volatile int32_t* ids = args.ids;  // other blocks take out other experts' pairs meanwhile
  int64_t mine = 0;
  for (int64_t p = from; p < to; p += 32)
    mine += __popc(__ballot_sync(~0u, p + lane < to && ids[p + lane] == expert));
  if (lane == 0) before[warp] = mine;
  __syncthreads();
  int64_t rank = 0;
  for (int w = 0; w < warp; ++w) rank += before[w];
  for (int64_t p = from; p < to; p += 32) {
    const bool hit = p + lane < to && ids[p + lane] == expert;
    const unsigned hits = __ballot_sync(~0u, hit);
    const int64_t place = rank + __popc(hits & ((1u << lane) - 1));
    if (hit && place >= capacity) {
      ids[p + lane] = -1;
      args.weights[p + lane] = 0;
      atomicAdd(reinterpret_cast<unsigned long long*>(&args.note->counts.dropped), 1ull);
    }
    rank += __popc(hits);
  }
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
                          cudaStream_t stream) {
  if (to.tokens == 0) return cudaSuccess;
  return launch(replay, blocks_for(to.tokens * to.top_k), kThreads, 0, stream, to, ids, weights);
}

cudaError_t launch_record(const RoutingArgs& from, int32_t* ids, float* weights,
                          cudaStream_t stream) {
  if (from.tokens == 0) return cudaSuccess;
  return launch(record, blocks_for(from.tokens * from.top_k), kThreads, 0, stream, from, ids,
                weights);
}

cudaError_t launch_capacity(const RoutingArgs& args, int64_t capacity, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  return launch(limit, static_cast<unsigned>(args.candidates), 1024, 0, stream, args, capacity);
}

cudaError_t launch_widen(const Rows& from, const RoutingArgs& args, float* to,
                         cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  return launch(widen, blocks_for(args.tokens * args.candidates), kThreads, 0, stream, from, args,
                to);
}

}  // namespace moe::cuda
