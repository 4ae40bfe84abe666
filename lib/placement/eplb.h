// The two steps of DeepSeek's EPLB, in its precision (fp32) and with stable ties.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/placement.h"

namespace moe::placement {

// Where each item went. n items, n % packs == 0, n / packs in each pack.
struct Packing {
  std::vector<int32_t> pack, place;  // (items): the pack, and the place within it
};
// Items in descending weight, each to the lightest pack that has room (lowest index on ties).
// As published, a single item per pack is not even sorted.
Packing balanced_packing(std::span<const float> weight, int32_t packs);
// The same without that exception.
Packing sorted_packing(std::span<const float> weight, int32_t packs);
// Indices in descending weight, stable.
std::vector<int32_t> descending(std::span<const float> weight);

// Copies: each expert once, then one more of whichever has the largest weight per copy.
struct Replicas {
  std::vector<int32_t> expert;  // (slots)
  std::vector<int32_t> count;   // (experts)
};
Replicas replicate(std::span<const float> weight, int32_t slots);

// The experts node by node, after their groups were packed into nodes. `pack` is one of the above.
std::vector<int32_t> order_by_node(std::span<const float> weight, int32_t groups, int32_t nodes,
                                   Packing (*pack)(std::span<const float>, int32_t));

// expert_of_slot of one layer. groups % nodes == 0; global EPLB has one of each.
std::vector<int32_t> eplb(std::span<const float> weight, int32_t slots, int32_t groups,
                          int32_t nodes, int32_t ranks);

// failed_precondition unless ranks (and, hierarchically, nodes) are equal.
Status eplb_applies(const Cluster& cluster, bool hierarchical);

}  // namespace moe::placement
