// Semi-matching of experts to ranks: which copy executes each expert, so that the busiest rank
// executes as few as possible. Exact. Buffers are kept from call to call.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/replica_choice.h"

namespace moe::placement {

class Matcher {
 public:
  explicit Matcher(const ReplicaTable& table);

  // Experts in `active` are distinct and have copies. Returns the fewest.
  int32_t run(std::span<const int32_t> active);

  // Of the last run: an index into table.slot per active expert, and the experts per rank.
  const std::vector<int32_t>& copies() const { return copy_; }
  const std::vector<int32_t>& load() const { return load_; }

 private:
  void assign_greedily();
  bool relieve(int32_t rank);
  void flip(int32_t rank);

  const ReplicaTable& table_;
  std::span<const int32_t> active_;
  std::vector<int32_t> copy_;                   // (active)
  std::vector<int32_t> load_;                   // (ranks)
  std::vector<std::vector<int32_t>> flexible_;  // (ranks): active indices that could go elsewhere
  std::vector<int32_t> order_, queue_;
  std::vector<int32_t> via_expert_, via_copy_;  // (ranks): how the search reached each rank
};

}  // namespace moe::placement
