#include "permute/combine.h"
#include "permute/weighted_sum.cuh"
#include "runtime/finish.cuh"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

// A block a token and a part of its columns, kCount of them a thread.
template <int kCount>
__global__ void combine(const CombineArgs args) {
  __shared__ Order order;
  const int64_t token = blockIdx.x;
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) finish(args.finish);
  if (args.note && token >= args.note->rows) return;
  if (threadIdx.x < 32) sort_places(args, token, &order);
  __syncthreads();
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kCount;
  if (column < args.hidden)
    write_sum<kCount>(args, order, MemoryRows<kCount, false>{args}, token, column);
}

}  // namespace

cudaError_t launch_combine(const CombineArgs& args, cudaStream_t stream) {
  if (args.top_k < 1 || args.top_k > 32 || args.row_stride % 8 != 0) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  const bool vector = sums_by_8(args);
  const int threads = args.tokens < 64 ? 64 : 256;
  const int columns = threads * (vector ? 8 : 1);
  const dim3 grid(static_cast<unsigned>(args.tokens),
                  static_cast<unsigned>((args.hidden + columns - 1) / columns));
  return launch(vector ? combine<8> : combine<1>, grid, threads, 0, stream, args);
}

}  // namespace moe::cuda
