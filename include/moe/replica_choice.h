// Which copy of an expert serves a token. The placement is fixed; this decides batch by batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/export.h"
#include "moe/placement.h"
#include "moe/status.h"

namespace moe {

// How the copy that serves a token is chosen.
enum class ReplicaChoice : int32_t {
  fixed,          // own rank, then own node, else always the same copy for a source rank
  nearest,        // own rank, own node, a node that the token visits anyway, else by position
  round_robin,    // copies in turn, pair by pair
  position_hash,  // (token * 2654435769 mod 2^32) mod copies, as vLLM's kernel
  least_loaded,   // the copy on the rank with the fewest rows so far
  matching,       // one copy per expert and batch: fewest active experts on the busiest rank
  lp_split,       // shares that minimise the busiest rank's rows (LPLB), exactly
};
MOE_API const char* to_string(ReplicaChoice choice);  // "nearest"

// The copies of each expert, in order of their slots.
struct ReplicaTable {
  int32_t ranks = 0;                  // of the placement
  std::vector<int32_t> first;         // (experts + 1)
  std::vector<int32_t> slot;          // (copies): in the layer
  std::vector<int32_t> rank;          // (copies)
  std::vector<int32_t> node_of_rank;  // (ranks); empty: one node

  // Experts of the layer.
  int32_t experts() const { return static_cast<int32_t>(first.size()) - 1; }
};
// The copies that `placement` has. invalid_argument if it does not fit `cluster`.
MOE_API Result<ReplicaTable> replica_table(const LayerPlacement& placement, const Cluster& cluster,
                                           int32_t experts);

// One batch. Ids outside [0, experts) get slot -1.
struct ReplicaBatch {
  std::span<const int32_t> ids;  // (tokens, top_k)
  int32_t top_k = 1;             // experts of a row
  int32_t source_rank = 0;       // of all tokens
  int64_t first_token = 0;       // global index of row 0, for the hash and the turns
};

// Writes slots (tokens, top_k).
MOE_API Status choose_replicas(ReplicaChoice choice, const ReplicaTable& table,
                               const ReplicaBatch& batch, std::span<int32_t> slots);

// One copy for each expert of `active` (distinct), so that the busiest rank executes as few experts
// as possible: exact, by augmenting paths. Writes indices into table.slot; returns that fewest.
MOE_API Result<int32_t> match_replicas(const ReplicaTable& table, std::span<const int32_t> active,
                                       std::span<int32_t> copies);

// Shares of each copy, and what they cost.
struct LoadSplit {
  double max_load = 0;         // tokens of the busiest rank
  std::vector<double> tokens;  // (copies)
};

// The shares that minimise the busiest rank's tokens: exact, by parametric max-flow. `counts` is
// (experts), in tokens.
MOE_API Result<LoadSplit> split_load(const ReplicaTable& table, std::span<const double> counts);

}  // namespace moe
