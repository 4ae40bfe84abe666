// Groups the chosen (token, expert) pairs by expert, on the device and without a host wait: a
// stable counting sort. Rows of the permuted batch ascend in the expert's index and, within an
// expert, in the pair's index p = token * top_k + place. The same pass cuts each expert's rows into
// tiles, drops what exceeds a capacity, and copies the token rows.
//
// Tokens are cut into chunks. What writes the ids counts the pairs of each expert in each chunk, so
// that the blocks of the sort, one a chunk, need not wait for each other.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "permute/copy_rows.h"

namespace moe::cuda {

// The tiles of one expert, as one entry per tile: entry `first + i` of the list for i < tiles.
// A kernel with m weight tiles per expert finds its t-th piece of work in entry t / m.
struct alignas(16) TokenTile {
  int32_t slot;   // of the pool
  int32_t first;  // index of the expert's first entry
  int32_t tiles;  // entries of the expert
  int32_t row;    // its first permuted row
  int32_t rows;   // its rows
  int32_t expert;
  int32_t padding[2];
};

// A chunk for each multiprocessor of an H100, if there are as many tokens; a warp chooses for one.
inline constexpr int64_t kMostChunks = 132, kFewestChunkTokens = 4;
constexpr int64_t chunk_tokens(int64_t tokens) {
  const int64_t even = (tokens + kMostChunks - 1) / kMostChunks;
  return even < kFewestChunkTokens ? kFewestChunkTokens : even;
}
constexpr int64_t num_chunks(int64_t tokens) {
  return (tokens + chunk_tokens(tokens) - 1) / chunk_tokens(tokens);
}

inline constexpr int kMaxFewPairs = 512;  // that one block groups (permute/group_few.cuh)

struct GroupArgs {
  int32_t* ids = nullptr;  // (tokens, top_k); -1: no expert, which dropped ones become
  int64_t tokens = 0;
  int32_t top_k = 0;
  int32_t num_experts = 0;

  const int32_t* slot_of_expert = nullptr;  // (num_experts) on the device; -1: gets no tiles
  int32_t tile_tokens = 0;                  // most rows of a tile

  int32_t* row_token = nullptr;    // (tokens * top_k): the token of a permuted row
  int32_t* row_of_pair = nullptr;  // (tokens * top_k): the permuted row of a pair; -1: none
  TokenTile* tiles = nullptr;      // (max_tiles)
  int32_t* tile_count = nullptr;   // (1)

  uint64_t* expert_rows = nullptr;  // (num_experts): rows are added to; or null
};

struct PermuteArgs : GroupArgs {
  const int32_t* chunk_rows = nullptr;  // (num_chunks(tokens), num_experts): pairs, before any drop

  // Rows of an expert, in the pairs' order, beyond which a choice is dropped; 0: any. With it the
  // weights, which become 0, and the note, which counts.
  int64_t capacity = 0;
  float* weights = nullptr;  // (tokens, top_k)
  ForwardNote* note = nullptr;

  // Where the final ids and weights of the note's rows are recorded; or null.
  int32_t* ids_out = nullptr;
  float* weights_out = nullptr;

  // Both from the tokens' rows, if they have a target: to their own places, and to permuted ones
  // (row_of_pair is this one's).
  CopyRowsArgs cast;
  CopyRowsArgs copy;
};

// One thread for each expert that has rows.
#if defined(__CUDACC__)
__device__ inline void count_rows(const GroupArgs& args, int expert, int rows) {
  if (args.expert_rows && rows > 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(args.expert_rows) + expert,
              static_cast<unsigned long long>(rows));
}
#endif

// Bound of tile_count.
constexpr int64_t max_tiles(int64_t pairs, int64_t num_experts, int64_t tile_tokens) {
  return pairs / tile_tokens + (pairs < num_experts ? pairs : num_experts);
}

inline constexpr int32_t kMaxExperts = 4096;

// Pairs below 2^31.
cudaError_t launch_permute(const PermuteArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
