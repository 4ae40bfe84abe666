// Who holds a slot of a pool, and who leaves when another comes: the decisions of paging, without
// the bytes. A store that pages and the simulator decide with this code.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/eviction.h"
#include "moe/simulate.h"
#include "store/expert_index.h"

namespace moe {

// An expert of some layer, in one version: what a wave computes with.
struct Need {
  int32_t expert = -1;
  uint32_t version = 1;

  friend bool operator==(const Need&, const Need&) = default;
};

// Not thread-safe. `policy` must outlive it. An expert is held in at most kVersions versions: a
// third one waits, or takes the place of one that may go.
class Residency {
 public:
  static constexpr int kVersions = 2;

  // Says which copies may not go, because somebody computes with them.
  class Leases {
   public:
    virtual bool leased(ExpertId id, uint32_t version) const noexcept = 0;

   protected:
    ~Leases() = default;
  };

  // What became of one expert that a wave takes.
  struct Decision {
    Need need;
    bool hit = false;
    ExpertId evicted;  // {}: nobody
    uint32_t evicted_version = 0;
  };

  // Needs validate(layers). `slots` at least 1.
  Residency(std::span<const LayerExperts> layers, int64_t slots, EvictionPolicy& policy);

  bool resident(ExpertId id) const { return holds(id, 0) || holds(id, 1); }
  bool resident(ExpertId id, uint32_t version) const { return place(id, version) >= 0; }
  int versions(ExpertId id) const { return holds(id, 0) + holds(id, 1); }
  int64_t slots() const { return slots_; }
  int64_t used() const { return used_; }
  EvictionPolicy& policy() const { return policy_; }

  // Takes and gives slots away; evicts nobody by itself.
  void set_slots(int64_t slots) { slots_ = slots; }

  // Gives `incoming` a slot: a free one, or that of the expert named in *evicted ({}: nobody).
  // False if nobody may go. Fails if the policy names an expert that may not.
  Result<bool> admit(ExpertId incoming, const EvictionCandidates& may_go, ExpertId* evicted);
  // The same whatever the number of slots, of an expert with fewer than kVersions.
  void add(ExpertId id, uint32_t version);

  // Takes the slot of a resident away.
  void drop(ExpertId id, uint32_t version = 1);

  // Chooses somebody to go so that the pool can shrink, and takes the slot away: .evicted, {} if
  // all are leased.
  Result<Decision> shrink(const Leases* leases);

  // One wave of a forward of `layer` which still needs `pending`, all different: those that are
  // resident, and as many of the others, in their order, as find a slot without evicting any of
  // them. Moves them from `pending` to `wave`. An empty wave means that all slots are leased.
  // Allocates before it decides anything.
  Status take_wave(int32_t layer, const Leases* leases, std::vector<Need>& pending,
                   std::vector<Decision>& wave);

 private:
  class Unpinned;
  struct Slots {
    std::array<uint32_t, kVersions> version{};  // 0: none
    std::array<bool, kVersions> pinned{};       // the wave's forward still needs it
  };

  bool holds(ExpertId id, int place) const {
    return held_[static_cast<size_t>(index_.find(id))].version[static_cast<size_t>(place)] != 0;
  }
  int place(ExpertId id, uint32_t version) const;
  void pin(int32_t layer, std::span<const Need> needs, bool on);
  uint32_t any_version(ExpertId id) const;
  bool full(int32_t layer) const;
  Result<ExpertId> choose(ExpertId incoming, const EvictionCandidates& may_go);

  ExpertIndex index_;
  int64_t slots_;
  int64_t used_ = 0;
  EvictionPolicy& policy_;
  std::vector<Slots> held_;        // (experts)
  std::vector<int64_t> of_layer_;  // (layers): slots
};

}  // namespace moe
