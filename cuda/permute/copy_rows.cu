#include "gemm/layout.h"
#include "permute/copy_rows.h"
#include "quant/e4m3.cuh"
#include "runtime/launch.cuh"
#include "runtime/note.h"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kColumns = 1024;  // of a warp

// A lane's columns of a token, in pieces that a warp loads side by side.
struct Plain {
  static constexpr int kWidth = 8;  // columns of a piece
  uint4 value;

  __device__ void load(const __nv_bfloat16* from) {
    value = __ldg(reinterpret_cast<const uint4*>(from));
  }
  __device__ void finish() {}
  __device__ void store(const CopyRowsArgs& args, int64_t row, int64_t column) const {
    *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(args.to) + row * args.hidden + column) =
        value;
  }
};

struct Quantized {
  static constexpr int kWidth = 16;
  uint4 low = {}, high = {}, codes;
  float scale;

  __device__ void load(const __nv_bfloat16* from) {
    low = __ldg(reinterpret_cast<const uint4*>(from));
    high = __ldg(reinterpret_cast<const uint4*>(from) + 1);
  }
  // 8 lanes hold the 128 columns of a scale.
  __device__ void finish() {
    uint32_t amax = 0;
    for (const uint4& v : {low, high})
      amax = max(max(max(amax, magnitude_bits(v.x)), max(magnitude_bits(v.y), magnitude_bits(v.z))),
                 magnitude_bits(v.w));
#pragma unroll
    for (int d = 4; d > 0; d /= 2) amax = max(amax, __shfl_xor_sync(~0u, amax, d));
    const RowScale of(amax);
    scale = of.scale;
    codes = {of.word(low.x, high.x), of.word(low.y, high.y), of.word(low.z, high.z),
             of.word(low.w, high.w)};
  }
  __device__ void store(const CopyRowsArgs& args, int64_t row, int64_t column) const {
    *reinterpret_cast<uint4*>(static_cast<std::byte*>(args.to) + row * args.hidden + column) =
        codes;
    if (column % kScaleBlock == 0)
      args.scales[column / kScaleBlock * args.scale_stride + row] = scale;
  }
};

constexpr int64_t parts(int64_t hidden) { return (hidden + kColumns - 1) / kColumns; }

// One part of one token.
template <typename Piece>
__device__ void copy_part(const CopyRowsArgs& args, int64_t token, int64_t part) {
  constexpr int kStep = 32 * Piece::kWidth, kPieces = kColumns / kStep;
  const int lane = threadIdx.x % 32;
  const int64_t first = part * kColumns + lane * Piece::kWidth;
  int32_t rows = -1;
  if (lane < args.top_k)
    rows = args.row_of_pair ? args.row_of_pair[token * args.top_k + lane]
                            : static_cast<int32_t>(token);
  Piece pieces[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i)
    if (first + i * kStep < args.hidden)
      pieces[i].load(args.from + token * args.hidden + first + i * kStep);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) pieces[i].finish();
  for (int place = 0; place < args.top_k; ++place) {
    const int32_t row = __shfl_sync(~0u, rows, place);
    if (row < 0) continue;
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      if (first + i * kStep < args.hidden) pieces[i].store(args, row, first + i * kStep);
  }
}

// A warp a part at a time.
template <typename Piece>
__global__ void __launch_bounds__(kThreads) copy_rows(const CopyRowsArgs args) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t tokens = args.note ? args.note->rows : args.tokens;
  const int64_t items = tokens * parts(args.hidden);
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; item < items;
       item += static_cast<int64_t>(gridDim.x) * kWarps)
    copy_part<Piece>(args, item / parts(args.hidden), item % parts(args.hidden));
}

}  // namespace

cudaError_t launch_copy_rows(const CopyRowsArgs& args, cudaStream_t stream) {
  if (args.hidden % (args.scales ? 16 : 8) != 0 || args.top_k < 1 || args.top_k > 32)
    return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  const int64_t blocks = (args.tokens * parts(args.hidden) + kWarps - 1) / kWarps;
  return launch(args.scales ? copy_rows<Quantized> : copy_rows<Plain>,
                static_cast<unsigned>(blocks < 1056 ? blocks : 1056), kThreads, 0, stream, args);
}

}  // namespace moe::cuda
