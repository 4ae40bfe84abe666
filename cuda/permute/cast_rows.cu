#include "permute/cast_rows.h"
#include "runtime/launch.cuh"
#include "runtime/note.h"
#include "runtime/ptx.cuh"
#include "runtime/rows.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;

// A warp a pair at a time.
__global__ void __launch_bounds__(kThreads) cast_rows(const CastRowsArgs args) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t pairs = args.note->rows * args.top_k;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       pair < pairs; pair += step) {
    const int64_t row = args.row_of_pair ? args.row_of_pair[pair] : pair;
    if (row < 0) continue;
    const float weight = args.weights ? args.weights[pair] : 1.0f;
    const int64_t from = pair / args.top_k * args.from.stride;
    for (int64_t h = threadIdx.x % 32; h < args.stride; h += 32) {
      const float x =
          h < args.hidden ? load_float(args.from.data, args.from.type, from + h) * weight : 0.0f;
      args.to[row * args.stride + h] = __float2bfloat16(x);
    }
  }
}

}  // namespace

cudaError_t launch_cast_rows(const CastRowsArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  const int64_t blocks = (args.tokens * args.top_k + kThreads / 32 - 1) / (kThreads / 32);
  return launch(cast_rows, static_cast<unsigned>(blocks < 2112 ? blocks : 2112), kThreads, 0,
                stream, args);
}

}  // namespace moe::cuda
