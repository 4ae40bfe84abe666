// ReplicaChoice::nearest for one token: what choose_replicas() does and evaluate() predicts.
#pragma once

#include <algorithm>
#include <span>

#include "moe/replica_choice.h"
#include "placement/replica_hash.h"

namespace moe::placement {

inline int32_t node_of(const ReplicaTable& table, int32_t rank) {
  return table.node_of_rank.empty() ? 0 : table.node_of_rank[rank];
}

// The copy of `expert` nearest to `source` without regard to the token's other experts, or -1 if
// all of several copies are on other nodes.
inline int32_t near_copy(const ReplicaTable& table, int32_t expert, int32_t source) {
  const int32_t begin = table.first[expert], end = table.first[expert + 1];
  if (end - begin == 1) return begin;
  int32_t same_node = -1;
  for (int32_t copy = begin; copy < end; ++copy) {
    if (table.rank[copy] == source) return copy;
    if (same_node < 0 && node_of(table, table.rank[copy]) == node_of(table, source))
      same_node = copy;
  }
  return same_node;
}

// Writes an index into table.slot for each of the token's `ids` (all valid, with copies).
inline void choose_nearest(const ReplicaTable& table, std::span<const int32_t> ids, int32_t source,
                           int64_t token, std::span<int32_t> copies) {
  for (size_t k = 0; k < ids.size(); ++k) copies[k] = near_copy(table, ids[k], source);
  for (size_t k = 0; k < ids.size(); ++k) {
    if (copies[k] >= 0) continue;
    const int32_t begin = table.first[ids[k]], count = table.first[ids[k] + 1] - begin;
    const int32_t turn = replica_by_position(token, count);
    for (int32_t i = 0; i < count && copies[k] < 0; ++i) {
      const int32_t copy = begin + (turn + i) % count;
      const bool visited = std::any_of(copies.begin(), copies.end(), [&](int32_t other) {
        return other >= 0 && node_of(table, table.rank[other]) == node_of(table, table.rank[copy]);
      });
      if (visited) copies[k] = copy;
    }
    if (copies[k] < 0) copies[k] = begin + turn;
  }
}

}  // namespace moe::placement
