// The memory of one forward, cut into named pieces. Pure arithmetic: the same function sizes it
// before a host allocates and cuts it afterwards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "moe/expert_gemm.h"
#include "store/store_impl.h"

namespace moe {

// What the size depends on.
struct BatchShape {
  int64_t tokens = 0;
  int32_t top_k = 0;
  int concurrency = 1;
};

// Rows of all chosen experts are kept until the weighted sum, so a large batch is computed in
// chunks of rows. Bits do not depend on the chunks: a row's bits depend on that row alone.
int64_t chunk_tokens(const LayerSpec& spec, const BatchShape& batch);

// P = chunk * top_k pairs.
struct Workspace {
  // The whole batch.
  std::span<int32_t> ids;    // (tokens, top_k)
  std::span<float> weights;  // (tokens, top_k)

  // The whole batch, while a candidate serves some of its rows.
  std::span<uint8_t> side;        // (tokens): 1 for the candidate's rows
  std::span<int32_t> side_ids;    // (tokens, top_k): the candidate's routing
  std::span<float> side_weights;  // (tokens, top_k)

  // One chunk.
  std::span<int64_t> pairs;             // (P), grouped by expert
  std::span<int32_t> keys;              // (P): expert, or experts + expert of a candidate's own
  std::span<int64_t> first_pair;        // (2 experts + 1): where each key's pairs begin
  std::span<ExpertGroup> groups;        // at most min(2 experts, P)
  std::span<ExpertGroup> wave_groups;   // ditto
  std::span<Need> needs;                // of each group, in the order of groups
  std::span<Need> needed;               // ditto, in the order of use
  std::span<float> rows;                // (P, hidden), unweighted results by pair
  std::span<int64_t> shared_pairs;      // (chunk): 0, 1, 2, ..., the candidate's rows last
  std::span<float> shared_rows;         // (chunk, hidden)
  std::span<float> shared_gate;         // (chunk)
  std::span<int32_t> order;             // (concurrency, top_k), scratch of the weighted sum
  std::span<std::byte> shared_scratch;  // of the shared expert's backend
  std::span<std::byte> scratch;         // of the router, then of the chosen experts' backend

  size_t bytes = 0;  // of everything

  // Pieces for a batch on `layer`, starting at `base` (64-byte aligned; null to learn the size).
  static Workspace cut(const StoreLayer& layer, const BatchShape& batch, std::byte* base);
};

}  // namespace moe
