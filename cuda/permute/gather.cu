#include "permute/gather.h"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;

// A warp a row at a time.
__global__ void __launch_bounds__(kThreads) gather(const GatherArgs args) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t chunks = args.hidden / 8;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       row < args.rows; row += step) {
    const int32_t token = args.row_token[row];
    if (token < 0 || token >= args.tokens) continue;  // fewer pairs were routed
    const uint4* from = reinterpret_cast<const uint4*>(args.from + token * args.hidden);
    uint4* to = reinterpret_cast<uint4*>(args.to + row * args.hidden);
#pragma unroll 4
    for (int64_t i = threadIdx.x % 32; i < chunks; i += 32) to[i] = __ldg(from + i);
  }
}

}  // namespace

cudaError_t launch_gather(const GatherArgs& args, cudaStream_t stream) {
  if (args.hidden % 8 != 0) return cudaErrorInvalidValue;
  if (args.rows == 0) return cudaSuccess;
  const int64_t blocks = (args.rows + kThreads / 32 - 1) / (kThreads / 32);
  return launch(gather, static_cast<unsigned>(blocks < 1056 ? blocks : 1056), kThreads, 0, stream,
                args);
}

}  // namespace moe::cuda
