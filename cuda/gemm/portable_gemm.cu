#include <algorithm>

#include "gemm/activation.cuh"
#include "gemm/portable_gemm.h"
#include "gemm/work_list.cuh"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

enum class Output { plain, unary, activated };

// Everything that is known when the kernel is compiled. A ring stage is 128 bytes of every row.
template <int kTokenCount, Output kOutputKind>
struct Config {
  static constexpr Output kOutput = kOutputKind;
  static constexpr int kTokens = kTokenCount;
  static constexpr int kRows = kTileRows;
  static constexpr int kThreads = 256;
  static constexpr int kDepth = 64;  // elements of a stage
  static constexpr int kStages = kTokens == 32 ? 4 : 3;
  static constexpr int kStageBytes = (kRows + kTokens) * 128;
  static constexpr int kShared = kStages * kStageBytes;  // 99 KiB are the least of any card
  static_assert(kShared <= 99 * 1024);

  // Warps share a tile: kWarpRows weight rows by kWarpTokens each.
  static constexpr int kWarpsDown = kTokens == 32 ? 8 : 2;
  static constexpr int kWarpRows = kRows / kWarpsDown;
  static constexpr int kWarpTokens = kTokens / (kThreads / 32 / kWarpsDown);
  static constexpr int kM = kWarpRows / 16, kN = kWarpTokens / 8;  // products of a warp

  static constexpr int kColumns = kOutput == Output::activated ? kRows / 2 : kRows;
  static constexpr int kPitch = kColumns * 2 + 16;  // bytes of a staged row of the output
  static_assert(kTokens * kPitch <= kShared);
};

// Shared memory holds kStages of weight rows, then token rows.
template <typename C>
__device__ uint32_t weights_at(uint32_t ring, int stage) {
  return ring + stage % C::kStages * C::kStageBytes;
}
template <typename C>
__device__ uint32_t tokens_at(uint32_t ring, int stage) {
  return weights_at<C>(ring, stage) + C::kRows * 128;
}

// --- load -----------------------------------------------------------------------------------

// Thread t brings chunk t % 8 of rows t / 8 + 32 i.
template <typename C>
struct Loader {
  static constexpr int kStep = C::kThreads / 8;
  static constexpr int kTokenPasses = C::kTokens / kStep;
  const std::byte* weights;  // of the tile's first row
  int64_t weight_bytes;      // of a row
  int weight_count;
  const std::byte* tokens[kTokenPasses];  // null: no such row
  int64_t depth;

  __device__ Loader(const GroupedGemmArgs& args, const Work& work)
      : weights(args.weight_base + work.slot * args.slot_bytes + work.weight_row * args.depth * 2),
        weight_bytes(args.depth * 2),
        weight_count(static_cast<int>(
            min(args.weight_rows - work.weight_row, static_cast<int64_t>(C::kRows)))),
        depth(args.depth) {
#pragma unroll
    for (int i = 0; i < kTokenPasses; ++i) {
      const int row = threadIdx.x / 8 + kStep * i;
      tokens[i] = nullptr;
      if (row >= work.rows) continue;
      const int64_t from = args.row_index ? args.row_index[work.row + row] : work.row + row;
      tokens[i] = args.row_base + from * args.row_bytes;
    }
  }

  // What lies outside is zero.
  __device__ void load(uint32_t ring, int stage) const {
    const int chunk = threadIdx.x % 8, first = threadIdx.x / 8;
    const int64_t column = static_cast<int64_t>(stage) * C::kDepth + chunk * 8;
    const bool inside = column < depth;
    const int64_t offset = inside ? column * 2 : 0;
#pragma unroll
    for (int i = 0; i < C::kRows / kStep; ++i) {
      const int row = first + kStep * i;
      const bool there = inside && row < weight_count;
      copy_async_16(weights_at<C>(ring, stage) + swizzled(row, chunk),
                    weights + (there ? row * weight_bytes + offset : 0), there ? 16 : 0);
    }
#pragma unroll
    for (int i = 0; i < kTokenPasses; ++i) {
      const bool there = inside && tokens[i];
      copy_async_16(tokens_at<C>(ring, stage) + swizzled(first + kStep * i, chunk),
                    there ? tokens[i] + offset : weights, there ? 16 : 0);
    }
  }
};

// --- multiply -------------------------------------------------------------------------------

template <typename C>
__device__ void multiply_stage(uint32_t ring, int stage, int first_row, int first_token,
                               float (&sum)[C::kM][C::kN][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < C::kDepth / 16; ++k) {
    uint32_t a[C::kM][4], b[C::kN / 2][4];
#pragma unroll
    for (int m = 0; m < C::kM; ++m)
      load_matrices(a[m], weights_at<C>(ring, stage) +
                              swizzled(first_row + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int n = 0; n < C::kN / 2; ++n)
      load_matrices(b[n], tokens_at<C>(ring, stage) +
                              swizzled(first_token + 16 * n + lane / 16 * 8 + lane % 8,
                                       2 * k + lane / 8 % 2));
#pragma unroll
    for (int m = 0; m < C::kM; ++m)
#pragma unroll
      for (int n = 0; n < C::kN; ++n)
        multiply_bf16(sum[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
  }
}

template <typename C>
__device__ void multiply(const GroupedGemmArgs& args, const Work& work, uint32_t ring,
                         int first_row, int first_token, float (&sum)[C::kM][C::kN][4]) {
  const Loader<C> loader(args, work);
  const int stages = static_cast<int>((args.depth + C::kDepth - 1) / C::kDepth);
#pragma unroll
  for (int s = 0; s < C::kStages - 1; ++s) {
    if (s < stages) loader.load(ring, s);
    commit_copies();
  }
  for (int s = 0; s < stages; ++s) {
    wait_copies<C::kStages - 2>();
    __syncthreads();  // the stage is there, and all have read the one that is filled next
    if (s + C::kStages - 1 < stages) loader.load(ring, s + C::kStages - 1);
    commit_copies();
    if (first_token < work.rows) multiply_stage<C>(ring, s, first_row, first_token, sum);
  }
}

// --- epilogue -------------------------------------------------------------------------------

__device__ float bias_of(const float* bias, int64_t row, const GroupedGemmArgs& args) {
  return bias && row < args.weight_rows ? __ldg(bias + row) : 0.0f;
}

// The warp's part of the tile as bf16 rows of tokens in shared memory. A lane holds rows g and
// g + 8 of 16: a gate and its up where they are interleaved.
template <typename C>
__device__ void stage_output(const GroupedGemmArgs& args, const Work& work, std::byte* staging,
                             int first_row, int first_token, const float (&sum)[C::kM][C::kN][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const float* bias =
      args.bias ? reinterpret_cast<const float*>(args.bias + work.slot * args.slot_bytes) : nullptr;
  const auto put = [&](int token, int column, float value) {
    *reinterpret_cast<__nv_bfloat16*>(staging + token * C::kPitch + column * 2) =
        __float2bfloat16(value);
  };
  const Activating apply(args.activation, args.alpha, args.limit);
#pragma unroll
  for (int m = 0; m < C::kM; ++m) {
    const int row = first_row + 16 * m + g;
    const float low = bias_of(bias, work.weight_row + row, args);
    const float high = bias_of(bias, work.weight_row + row + 8, args);
#pragma unroll
    for (int n = 0; n < C::kN; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = first_token + 8 * n + 2 * q + i;
        const float a = sum[m][n][i] + low, b = sum[m][n][2 + i] + high;
        if constexpr (C::kOutput == Output::activated) {
          put(token, (first_row + 16 * m) / 2 + g, apply(a, b));
        } else if constexpr (C::kOutput == Output::unary) {
          put(token, row, apply(a, 1.0f));
          put(token, row + 8, apply(b, 1.0f));
        } else {
          put(token, row, a);
          put(token, row + 8, b);
        }
      }
  }
}

// 16 bytes a thread, whole rows of the tile by neighbouring threads.
template <typename C>
__device__ void write_output(const GroupedGemmArgs& args, const Work& work,
                             const std::byte* staging) {
  constexpr int kPieces = C::kColumns / 8;
  const int piece = threadIdx.x % kPieces;
  const int64_t column = work.weight_row / (C::kRows / C::kColumns) + piece * 8;
  if (column >= args.out_columns) return;
  auto* out = static_cast<__nv_bfloat16*>(args.out);
  for (int token = threadIdx.x / kPieces; token < work.rows; token += C::kThreads / kPieces)
    *reinterpret_cast<uint4*>(out + (work.row + token) * args.out_stride + column) =
        *reinterpret_cast<const uint4*>(staging + token * C::kPitch + piece * 16);
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 2)
    portable_gemm(const __grid_constant__ GroupedGemmArgs args) {
  extern __shared__ __align__(128) std::byte raw[];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const uint32_t ring = shared_address(raw);
  const int warp = threadIdx.x / 32;
  const int first_row = warp % C::kWarpsDown * C::kWarpRows;
  const int first_token = warp / C::kWarpsDown * C::kWarpTokens;
  TileList<C::kRows, 1> list(args);
  Work work;
  while (list.take(&work)) {
    float sum[C::kM][C::kN][4] = {};
    multiply<C>(args, work, ring, first_row, first_token, sum);
    wait_copies<0>();
    __syncthreads();  // the ring becomes the staging area
    stage_output<C>(args, work, raw, first_row, first_token, sum);
    __syncthreads();
    write_output<C>(args, work, raw);
    __syncthreads();
  }
}

template <typename C>
cudaError_t launch_config(const GroupedGemmArgs& args, int64_t max_tiles, int multiprocessors,
                          cudaStream_t stream) {
  const int64_t work = max_tiles * ((args.weight_rows + C::kRows - 1) / C::kRows);
  const int64_t blocks = std::min<int64_t>(work, 2 * multiprocessors);
  return launch(portable_gemm<C>, static_cast<unsigned>(blocks), C::kThreads, C::kShared, stream,
                args);
}

template <int kTokens>
cudaError_t launch_size(const GroupedGemmArgs& args, int64_t max_tiles, int multiprocessors,
                        cudaStream_t stream) {
  const auto run = [&](auto config) {
    return launch_config<decltype(config)>(args, max_tiles, multiprocessors, stream);
  };
  if (args.unary) return run(Config<kTokens, Output::unary>());
  if (args.activated) return run(Config<kTokens, Output::activated>());
  return run(Config<kTokens, Output::plain>());
}

}  // namespace

cudaError_t launch_portable_gemm_bf16(TileClass size, const GroupedGemmArgs& args,
                                      int64_t max_tiles, int multiprocessors, cudaStream_t stream) {
  const bool valid = args.operands == Operands::bf16 && args.depth > 0 && args.depth % 8 == 0 &&
                     args.weight_rows > 0 && args.out_stride % 8 == 0 && args.out_columns % 8 == 0;
  if (!valid || size == TileClass::large) return cudaErrorInvalidValue;
  if (max_tiles == 0) return cudaSuccess;
  if (size == TileClass::small)
    return launch_size<tile_tokens(TileClass::small)>(args, max_tiles, multiprocessors, stream);
  return launch_size<tile_tokens(TileClass::medium)>(args, max_tiles, multiprocessors, stream);
}

}  // namespace moe::cuda
