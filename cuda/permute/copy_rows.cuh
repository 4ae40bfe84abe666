// The copying of token rows (copy_rows.h) by the warps of any kernel.
#pragma once

#include "gemm/layout.h"
#include "permute/copy_rows.h"
#include "quant/e4m3.cuh"
#include "runtime/rows.cuh"

namespace moe::cuda {

inline constexpr int kCopyColumns = 512;  // of a warp at a time

constexpr int64_t copy_parts(int64_t hidden) { return (hidden + kCopyColumns - 1) / kCopyColumns; }

// 8 inputs from `column` on, whatever their type is.
__device__ __noinline__ inline void load_any_8(const CopyRowsArgs& args, int64_t token,
                                               int64_t column, float (&x)[8]) {
  const Rows& from = args.from;
#pragma unroll 1
  for (int i = 0; i < 8; ++i)
    x[i] = column + i < args.columns
               ? load_float(from.data, from.type, token * from.stride + column + i)
               : 0;
}

__device__ inline void load_floats(const CopyRowsArgs& args, int64_t token, int64_t column,
                                   float (&x)[8]) {
  if (column + 8 <= args.columns && aligned_by_8(args.from))
    load_8(args.from.data, args.from.type, token * args.from.stride + column, x);
  else
    load_any_8(args, token, column, x);
}

__device__ inline uint4 rounded(const float (&x)[8]) {
  uint4 out;
  store_8(&out, DType::bf16, 0, x);
  return out;
}

__device__ inline uint4 load_rounded(const CopyRowsArgs& args, int64_t token, int64_t column) {
  const Rows& from = args.from;
  if (from.type == DType::bf16 && column + 8 <= args.columns && aligned_by_8(from))
    return __ldg(reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(from.data) +
                                                token * from.stride + column));
  float x[8];
  load_floats(args, token, column, x);
  return rounded(x);
}

// A lane's columns of a token, in pieces that a warp loads side by side.
struct PlainPiece {
  static constexpr int kWidth = 8;  // columns of a piece
  uint4 value;

  __device__ void load(const CopyRowsArgs& args, int64_t token, int64_t column) {
    value = load_rounded(args, token, column);
  }
  __device__ void finish() {}
  __device__ void store(const CopyRowsArgs& args, int64_t row, int64_t column, float) const {
    *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(args.to) + row * args.hidden + column) =
        value;
  }
};

struct WeightedPiece {
  static constexpr int kWidth = 8;
  float value[8];

  __device__ void load(const CopyRowsArgs& args, int64_t token, int64_t column) {
    load_floats(args, token, column, value);
  }
  __device__ void finish() {}
  __device__ void store(const CopyRowsArgs& args, int64_t row, int64_t column, float weight) const {
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = value[i] * weight;
    *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(args.to) + row * args.hidden + column) =
        rounded(x);
  }
};

struct QuantizedPiece {
  static constexpr int kWidth = 16;
  uint4 low = {}, high = {}, codes;
  float scale;

  __device__ void load(const CopyRowsArgs& args, int64_t token, int64_t column) {
    low = load_rounded(args, token, column);
    high = load_rounded(args, token, column + 8);
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
  __device__ void store(const CopyRowsArgs& args, int64_t row, int64_t column, float) const {
    *reinterpret_cast<uint4*>(static_cast<std::byte*>(args.to) + row * args.hidden + column) =
        codes;
    if (column % kScaleBlock == 0)
      args.scales[column / kScaleBlock * args.scale_stride + row] = scale;
  }
};

// One part of one token, by one warp.
template <typename Piece>
__device__ void copy_part(const CopyRowsArgs& args, int64_t token, int64_t part) {
  constexpr int kStep = 32 * Piece::kWidth, kPieces = kCopyColumns / kStep;
  const int lane = threadIdx.x % 32;
  const int64_t first = part * kCopyColumns + lane * Piece::kWidth;
  int32_t rows = -1;
  float weights = 1;
  if (lane < args.top_k) {
    rows = args.row_of_pair ? args.row_of_pair[token * args.top_k + lane]
                            : static_cast<int32_t>(token);
    if (args.weights) weights = args.weights[token * args.top_k + lane];
  }
  Piece pieces[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i)
    if (first + i * kStep < args.hidden) pieces[i].load(args, token, first + i * kStep);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) pieces[i].finish();
  for (int place = 0; place < args.top_k; ++place) {
    const int32_t row = __shfl_sync(~0u, rows, place);
    const float weight = __shfl_sync(~0u, weights, place);
    if (row < 0) continue;
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      if (first + i * kStep < args.hidden) pieces[i].store(args, row, first + i * kStep, weight);
  }
}

// The tokens from `begin` to `end`; warp `warp` of `warps` that share them.
template <typename Piece>
__device__ void copy_tokens(const CopyRowsArgs& args, int64_t begin, int64_t end, int64_t warp,
                            int64_t warps) {
  const int64_t parts = copy_parts(args.hidden);
  for (int64_t item = warp; item < (end - begin) * parts; item += warps)
    copy_part<Piece>(args, begin + item / parts, item % parts);
}

}  // namespace moe::cuda
