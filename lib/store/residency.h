// Who holds a slot of a pool, and who leaves when another comes: the decisions of paging, without
// the bytes. A store that pages and the simulator decide with the same code.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/eviction.h"
#include "moe/simulate.h"
#include "store/expert_index.h"

namespace moe {

// Not thread-safe. `policy` must outlive it.
class Residency {
 public:
  // Needs validate(layers). `slots` at least 1.
  Residency(std::span<const LayerExperts> layers, int64_t slots, EvictionPolicy& policy);

  bool resident(ExpertId id) const { return resident_[static_cast<size_t>(index_.find(id))]; }
  int64_t slots() const { return slots_; }
  int64_t used() const { return used_; }

  // Gives `incoming` a slot: a free one, or that of the expert named in *evicted ({}: nobody).
  // False if nobody may go. Fails if the policy names an expert that may not.
  Result<bool> admit(ExpertId incoming, const EvictionCandidates& may_go, ExpertId* evicted);

  // Takes the slot of a resident away.
  void drop(ExpertId id);

  // One wave of a forward of `layer` which still needs `pending`, distinct experts: those that are
  // resident, and as many of the others, in their order, as find a slot without evicting any of
  // them. Moves them from `pending` to `wave`; `events`, if given, gets one for each. `leased` says
  // which other experts may go (null: all). An empty wave means that all slots are leased.
  Status take_wave(int32_t layer, const EvictionCandidates* leased, std::vector<int32_t>& pending,
                   std::vector<int32_t>& wave, std::vector<PagingEvent>* events);

 private:
  class Unpinned;

  ExpertIndex index_;
  int64_t slots_;
  int64_t used_ = 0;
  EvictionPolicy& policy_;
  std::vector<bool> resident_;  // (experts)
  std::vector<bool> pinned_;    // (experts): the wave's forward still needs it
  std::vector<int64_t> held_;   // (layers): slots
};

}  // namespace moe
