#include "permute/copy_rows.cuh"
#include "runtime/launch.cuh"
#include "runtime/note.h"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

template <typename Piece>
__global__ void __launch_bounds__(kThreads) copy_rows(const __grid_constant__ CopyRowsArgs args) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  copy_tokens<Piece>(args, 0, args.note ? args.note->rows : args.tokens,
                     static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32,
                     static_cast<int64_t>(gridDim.x) * kWarps);
}

}  // namespace

cudaError_t launch_copy_rows(const CopyRowsArgs& args, cudaStream_t stream) {
  if (!valid_copy(args)) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  const int64_t blocks = (args.tokens * copy_parts(args.hidden) + kWarps - 1) / kWarps;
  const auto kernel = args.scales    ? copy_rows<QuantizedPiece>
                      : args.weights ? copy_rows<WeightedPiece>
                                     : copy_rows<PlainPiece>;
  return launch(kernel, static_cast<unsigned>(blocks < 1056 ? blocks : 1056), kThreads, 0, stream,
                args);
}

}  // namespace moe::cuda
