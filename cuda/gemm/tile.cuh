// What a block of grouped_gemm.cuh works on: its configuration, its shared memory, and its list of
// tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gemm/grouped_gemm.h"
#include "gemm/layout.h"
#include "gemm/work_list.cuh"
#include "runtime/ptx.cuh"
#include "runtime/wgmma.cuh"

namespace moe::cuda::grouped {

enum class Output { plain, unary, silu, activated };  // silu: apart, for speed

// Everything that is known when the kernel is compiled. A ring stage is 128 bytes of every weight
// row, and as many elements of every token row.
template <Operands kOperandTypes, TileClass kSize, Output kOutputKind>
struct Config {
  static constexpr Operands kOperands = kOperandTypes;
  static constexpr Output kOutput = kOutputKind;
  static constexpr bool kScaled = kOperands != Operands::bf16;     // weights are e4m3
  static constexpr bool kRowScales = kOperands == Operands::w8a8;  // and rows too
  static constexpr bool kActivate = kOutput == Output::silu || kOutput == Output::activated;
  static constexpr bool kGather = gathers(kSize) && !kRowScales;
  static constexpr int kTokens = tile_tokens(kSize, kOperands);
  static constexpr int kConsumers = 2;
  static constexpr int kHalves = kRowScales ? 2 : 1;  // 64 weight rows of a consumer each
  static constexpr int kRows = kConsumers * kHalves * 64;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr bool kMoveRegisters = kTokens > 128 || (kScaled && kTokens == 128);
  static constexpr int kDepth = kScaled ? kScaleBlock : 64;  // elements of a stage
  static constexpr int kTokenBox = token_box(kSize);
  static constexpr int kPieces = kOperands == Operands::w8a16 ? 2 : 1;  // 128 bytes of a token row
  // Blocks that work side by side on neighbouring weight tiles of the same token rows, each of
  // which is read from L2 once for all of them.
  static constexpr int kCluster = kSize == TileClass::large ? 2 : 1;

  // An activated e4m3 row has a scale for each 128 columns: what a tile makes.
  static constexpr bool kQuantize = kRowScales && kActivate;

  static constexpr int kWeightBytes = kRows * 128;
  static constexpr int kPieceBytes = kTokens * 128;
  static constexpr int kScaleBytes = kRowScales ? kTokens * 4 : 0;
  static constexpr int kStageBytes = kWeightBytes + kPieces * kPieceBytes;

  // The epilogue turns kChunk tokens at a time: each consumer a half's columns as bf16, or both
  // together all of the tile's as f32, which are quantised then.
  static constexpr int kColumns = kActivate ? 32 : 64;  // of the output, per half
  static constexpr int kPitch = kQuantize ? kScaleBlock * 4 + 16 : kColumns * 2 + 16;
  static constexpr int kChunk = kTokens < 64 || kQuantize ? 32 : 64;
  static constexpr int kStagingBytes = (kQuantize ? 1 : kConsumers) * kChunk * kPitch;

  static constexpr int kShared = 227 * 1024;
  static constexpr int kStages =
      (kShared - 1024 - 512 - kStagingBytes) / (kStageBytes + kScaleBytes);
  static_assert(kStages >= 3 && kStages <= 24);
};

template <typename C>
struct Shared {
  std::byte* ring;     // kStages of weights then tokens, 1024-byte aligned
  std::byte* staging;  // of the output
  float* row_scales;   // kStages of kTokens
  uint64_t* full;
  uint64_t* empty;

  __device__ explicit Shared(std::byte* raw) {
    ring = raw + (1024 - shared_address(raw) % 1024) % 1024;
    staging = ring + C::kStages * C::kStageBytes;
    row_scales = reinterpret_cast<float*>(staging + C::kStagingBytes);
    full = reinterpret_cast<uint64_t*>(row_scales + C::kStages * C::kScaleBytes / 4);
    empty = full + C::kStages;
  }
  __device__ uint32_t weights(int stage) const {
    return shared_address(ring + stage * C::kStageBytes);
  }
  __device__ uint32_t tokens(int stage, int piece = 0) const {
    return weights(stage) + C::kWeightBytes + piece * C::kPieceBytes;
  }
  __device__ float* scales(int stage) const { return row_scales + stage * C::kTokens; }
};

// A position in the ring: which stage, and the parity of its use.
template <int kStages>
struct Cursor {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

template <typename C>
using WorkList = TileList<C::kRows, C::kCluster>;

// Stages of one tile.
template <typename C>
__device__ int blocks_of(const GroupedGemmArgs& args) {
  return static_cast<int>((args.depth + C::kDepth - 1) / C::kDepth);
}

}  // namespace moe::cuda::grouped
