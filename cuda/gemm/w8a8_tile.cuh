// What a block of the w8a8 kernel works on. Here tokens are the M side: a thread's accumulators
// belong to two tokens, so that scaling them takes a multiplication each and two scales of tokens.
#pragma once

#include "gemm/tile.cuh"

namespace moe::cuda::grouped {

// A tile is 128 tokens by 256 weight rows, multiplied 64 by 128 at a time: a consumer has 64
// tokens, or, where there are no more than that, 128 weight rows. A stage is 128 inputs: one scale
// of each token and of each 128 weight rows. Blocks of a cluster share the tokens.
template <Output kOutputKind, int kBlocks>
struct ScaledConfig {
  static constexpr Output kOutput = kOutputKind;
  static constexpr bool kActivate = kOutput != Output::plain;
  static constexpr int kCluster = kBlocks;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kTokens = kConsumers * 64;
  static constexpr int kRows = 256;
  static constexpr int kN = 128;  // weight rows at a time
  static constexpr int kDepth = kScaleBlock;
  static constexpr int kTokenBox = 32;

  static constexpr int kWeightBytes = kRows * kDepth;
  static constexpr int kPieceBytes = kTokens * kDepth;
  static constexpr int kStageBytes = kWeightBytes + kPieceBytes;

  // The output leaves through 16 rows of 128 bytes of each warp; where a token is of both
  // consumers, each tells the other its largest value.
  static constexpr int kPitch = 128 + 16;
  static constexpr int kOutputBytes = 4 * kConsumers * 16 * kPitch;
  static constexpr int kStagingBytes = kOutputBytes + kConsumers * 64 * 4;

  static constexpr int kShared = 227 * 1024;
  static constexpr int kNoteBytes = 32;
  static constexpr int kScaleBytes = (kTokens + 4) * 4;  // of the tokens, and two of the weights
  static constexpr int kStages =
      (kShared - 1024 - kStagingBytes) / (kStageBytes + kNoteBytes + kScaleBytes);
  static_assert(kStages == 4);
};

// Where the scales of a stage lie in shared memory.
template <typename C>
__device__ uint32_t scales_of(const Shared<C>& shared, int stage) {
  return shared.notes + C::kStages * C::kNoteBytes + stage * C::kScaleBytes;
}

// The scales of a stage that a thread needs.
struct StageScales {
  float token[2];   // of its rows, 8 apart
  float weight[2];  // of gates and ups; of plain rows, a part's first and second 128
};

// A consumer's part of a tile: 64 tokens by kHalves times 128 weight rows, from `half` on.
struct Part {
  int token, half;
  // The thread's first token: its second is 8 further on.
  __device__ int row() const { return token + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4; }
};

template <typename C>
__device__ StageScales load_scales(const Shared<C>& shared, int stage, const Part& part) {
  const uint32_t from = scales_of(shared, stage), token = from + part.row() * 4;
  const uint32_t weight = from + (C::kTokens + (C::kActivate ? 0 : part.half)) * 4;
  return {{load_shared(token), load_shared(token + 32)},
          {load_shared(weight), load_shared(weight + 4)}};
}

}  // namespace moe::cuda::grouped
