#include "router/matrix_logits.h"
#include "runtime/enter.cuh"
#include "runtime/launch.cuh"

namespace moe::cuda {
namespace {

constexpr int kWarps = 8;        // share the inputs of one tile
constexpr int kCandidates = 64;  // of a tile
constexpr int kStep = 32;        // inputs of a warp at a time: 16 bytes a lane
constexpr int kTiles = kCandidates / 8;

__device__ void multiply(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                         uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// 8 inputs of a row, or zeros.
__device__ uint4 load(const void* base, int64_t at, bool inside) {
  if (!inside) return {};
  return __ldg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(base) + at));
}

struct Shared {
  Beginning begin;
  float parts[kWarps][16][kCandidates + 1];
};

// A block: 16 kRowTiles rows by kCandidates. The order of inputs within a step is the lanes' own,
// the same for rows and weights: lane q of four holds inputs 8 q ... 8 q + 7.
template <int kRowTiles>
__device__ void multiply_tile(const LogitsArgs& args, Shared& s) {
  auto& parts = s.parts;
  const DeviceBlock& block = s.begin.head.block;
  const int64_t rows = s.begin.rows;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * 16 * kRowTiles;
  const int first = blockIdx.y * kCandidates, candidates = args.begin.candidates;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  float sum[kRowTiles][kTiles][4] = {};
  for (int64_t h = warp * kStep; h < args.hidden; h += kWarps * kStep) {
    const int64_t at = h + 8 * quad;
    const bool inside = at < args.hidden;
    uint4 x[kRowTiles][2], w[kTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first_row + 16 * r + 8 * half + group;
        x[r][half] = load(args.rows.data, row * args.rows.stride + at, inside && row < rows);
      }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int candidate = first + 8 * n + group;
      w[n] =
          load(block.router_weight, candidate * args.hidden + at, inside && candidate < candidates);
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        multiply(sum[r][n], x[r][0].x, x[r][1].x, x[r][0].y, x[r][1].y, w[n].x, w[n].y);
        multiply(sum[r][n], x[r][0].z, x[r][1].z, x[r][0].w, x[r][1].w, w[n].z, w[n].w);
      }
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    if (r > 0) __syncthreads();
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      parts[warp][group][8 * n + 2 * quad] = sum[r][n][0];
      parts[warp][group][8 * n + 2 * quad + 1] = sum[r][n][1];
      parts[warp][group + 8][8 * n + 2 * quad] = sum[r][n][2];
      parts[warp][group + 8][8 * n + 2 * quad + 1] = sum[r][n][3];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * kCandidates; i += kWarps * 32) {
      const int64_t row = first_row + 16 * r + i / kCandidates;
      const int candidate = first + i % kCandidates;
      if (row >= rows || candidate >= candidates) continue;
      float logit = 0;
#pragma unroll
      for (int part = 0; part < kWarps; ++part)
        logit += parts[part][i / kCandidates][i % kCandidates];
      if (block.logit_bias) logit += block.logit_bias[candidate];
      args.logits[row * candidates + candidate] = logit;
    }
  }
}

template <int kRowTiles>
__global__ void __launch_bounds__(kWarps * 32)
    matrix_logits(const __grid_constant__ LogitsArgs args) {
  __shared__ Shared s;
  begin_forward(args.begin, &s.begin);
  if (s.begin.head.block.router_type != DType::bf16) {
    if (is_first_block() && threadIdx.x == 0)
      args.begin.note->error = StatusCode::failed_precondition;
  } else if (static_cast<int64_t>(blockIdx.x) * 16 * kRowTiles < s.begin.rows) {
    multiply_tile<kRowTiles>(args, s);
  }
  is_last_block(args.begin.counters);
}

}  // namespace

bool fits_matrix_units(const LogitsArgs& args) {
  return !args.normalize && args.rows.type == DType::bf16 && aligned_by_8(args.rows) &&
         args.hidden % 8 == 0;
}

cudaError_t launch_matrix_logits(const LogitsArgs& args, cudaStream_t stream) {
  if (!fits_matrix_units(args)) return cudaErrorInvalidValue;
  const int64_t tokens = args.begin.tokens;
  if (tokens == 0) return cudaSuccess;
  const int64_t rows = tokens <= 2048 ? 16 : 32;
  const dim3 grid(static_cast<unsigned>((tokens + rows - 1) / rows),
                  static_cast<unsigned>((args.begin.candidates + kCandidates - 1) / kCandidates));
  return launch(rows == 16 ? matrix_logits<1> : matrix_logits<2>, grid, kWarps * 32, 0, stream,
                args);
}

}  // namespace moe::cuda
