#include "permute/copy_rows.h"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kPieces = 4;               // 16-byte loads of a lane
constexpr int kColumns = kPieces * 256;  // of a warp

constexpr int64_t parts(int64_t hidden) { return (hidden + kColumns - 1) / kColumns; }

// A warp: kColumns columns of one token at a time.
__global__ void __launch_bounds__(kThreads) copy_rows(const CopyRowsArgs args) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int lane = threadIdx.x % 32;
  const int64_t items = args.tokens * parts(args.hidden);
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; item < items;
       item += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t token = item / parts(args.hidden);
    const int64_t first = item % parts(args.hidden) * kColumns + lane * 8;
    const int32_t rows = lane < args.top_k ? args.row_of_pair[token * args.top_k + lane] : -1;
    uint4 pieces[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      if (first + i * 256 < args.hidden)
        pieces[i] = __ldg(
            reinterpret_cast<const uint4*>(args.from + token * args.hidden + first + i * 256));
    for (int place = 0; place < args.top_k; ++place) {
      const int32_t row = __shfl_sync(~0u, rows, place);
      if (row < 0) continue;
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
        if (first + i * 256 < args.hidden)
          *reinterpret_cast<uint4*>(args.to + row * args.hidden + first + i * 256) = pieces[i];
    }
  }
}

}  // namespace

cudaError_t launch_copy_rows(const CopyRowsArgs& args, cudaStream_t stream) {
  if (args.hidden % 8 != 0 || args.top_k < 1 || args.top_k > 32) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  const int64_t blocks = (args.tokens * parts(args.hidden) + kWarps - 1) / kWarps;
  return launch(copy_rows, static_cast<unsigned>(blocks < 1056 ? blocks : 1056), kThreads, 0,
                stream, args);
}

}  // namespace moe::cuda
