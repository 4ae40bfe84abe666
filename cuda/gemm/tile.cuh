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
template <Operands kOperandTypes, TileClass kSize, Output kOutputKind,
          int kMostTokens = tile_tokens(kSize, kOperandTypes)>
struct Config {
  static constexpr Operands kOperands = kOperandTypes;
  static constexpr Output kOutput = kOutputKind;
  static constexpr bool kScaled = kOperands == Operands::w8a16;  // weights are e4m3
  static constexpr bool kActivate = kOutput == Output::silu || kOutput == Output::activated;
  static constexpr bool kGather = gathers(kSize);
  static constexpr int kTokens = kMostTokens;
  static constexpr int kConsumers = 2;
  static constexpr int kRows = kConsumers * 64;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr bool kMoveRegisters = kTokens > 128 || kScaled;
  static constexpr int kProducerRegisters = kTokens < 128 ? 88 : 40;
  static constexpr int kConsumerRegisters = kTokens < 128 ? 208 : 232;
  static constexpr int kDepth = kScaled ? kScaleBlock : 64;  // elements of a stage
  static constexpr int kTokenBox = token_box(kSize);
  static constexpr int kPieces = kScaled ? 2 : 1;  // 128 bytes of a token row
  // Blocks that work side by side on neighbouring weight tiles of the same token rows, each of
  // which is read from L2 once for all of them.
  static constexpr int kCluster = kSize == TileClass::large ? 2 : 1;

  static constexpr int kWeightBytes = kRows * 128;
  static constexpr int kPieceBytes = kTokens * 128;
  static constexpr int kStageBytes = kWeightBytes + kPieces * kPieceBytes;
  static constexpr int kNoteBytes = 32;  // of a stage: barriers, and what it belongs to

  // The epilogue turns kChunk tokens of a consumer at a time.
  static constexpr int kColumns = kActivate ? 32 : 64;  // of the output, per consumer
  static constexpr int kPitch = kColumns * 2 + 16;
  static constexpr int kChunk = kTokens < 64 ? kTokens : 64;
  static constexpr int kStagingBytes = kConsumers * kChunk * kPitch;

  static constexpr int kShared = 227 * 1024;
  static constexpr int kStages = (kShared - 1024 - kStagingBytes) / (kStageBytes + kNoteBytes);
  static_assert(kStages >= 3 && kStages <= 24);

  static constexpr bool kStageScales = false;  // a stage's note has the scales of its weights

  // Whether the producer's threads bring the token rows with cp.async.
  __device__ static bool gathers_rows(const GroupedGemmArgs& args) {
    return kGather && args.row_index;
  }
};

// Shared memory, by addresses: a ring of kStages, weights then tokens, 1024-byte aligned; the
// staging area of the output; a note for each stage.
template <typename C>
struct Shared {
  std::byte* staging;
  uint32_t ring, notes;

  __device__ explicit Shared(std::byte* raw) {
    const uint32_t skipped = (1024 - shared_address(raw) % 1024) % 1024;
    staging = raw + skipped + C::kStages * C::kStageBytes;
    ring = keep(shared_address(raw) + skipped);
    notes = ring + C::kStages * C::kStageBytes + C::kStagingBytes;
  }
  __device__ uint32_t weights(int stage) const { return ring + stage * C::kStageBytes; }
  __device__ uint32_t tokens(int stage, int piece = 0) const {
    return weights(stage) + C::kWeightBytes + piece * C::kPieceBytes;
  }
  // The stage has been filled; has been read.
  __device__ uint32_t full(int stage) const { return notes + stage * 8; }
  __device__ uint32_t empty(int stage) const { return full(C::kStages + stage); }

  // Two, of C::kStageScales.
  __device__ uint32_t scales(int stage) const { return notes + C::kStages * 32 + stage * 8; }

  // The tile whose first stage this is: by the thread that arrives at full next, and by who has
  // waited for it. No rows: there are no more tiles.
  __device__ void put(int stage, const Work& work) const {
    store_shared_4(note(stage), {work.slot, work.weight_row, work.row, work.rows});
  }
  __device__ Work get(int stage) const {
    const int4 v = load_shared_4(note(stage));
    return {v.x, v.y, v.z, v.w};
  }

 private:
  __device__ uint32_t note(int stage) const { return notes + (C::kStages + stage) * 16; }
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
