// Which versions of experts serve: new ones are loaded beside the old, published between two
// forwards, and kept for the way back.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "store/mover.h"

namespace moe {

// What a reload replaces in one layer.
struct LayerTarget {
  StoreLayer* layer = nullptr;
  std::vector<int32_t> experts;  // ascending
  bool block = false;            // the router and the shared expert
};

// The versions that a layer is to serve when the reload or rollback that is under way has ended.
struct LayerGoal {
  std::vector<uint32_t> experts;  // by logical expert
  uint32_t shared = 0;
};

struct Versions : Mover {
  using Mover::Mover;
  using AllVersions = std::vector<std::shared_ptr<const LayerVersions>>;  // by store layer

  // ---- what the host asks for (reload.cc)
  Result<uint32_t> reload(const WeightSource& from, const ReloadOptions& wanted);
  Status rollback(int64_t deadline_ns);
  Status set_share(double share);
  Status forget_previous(int64_t deadline_ns);

  // ---- copies of a version that is to serve (load_versions.cc)
  Status load_target(const LayerTarget& target, const Version& version, int at_once,
                     int64_t end_ns);
  Status load_needs(StoreLayer& layer, std::span<const Need> needs, int at_once, int64_t end_ns);
  Result<Loader*> loader_beside();
  Status load_beside(std::span<const Need> needs, StoreLayer& layer, int64_t end_ns, int at_once);
  Result<int64_t> free_slots(const Compute& compute, int64_t count, int64_t end_ns);
  Status make_room(const Compute& compute, int64_t count, int64_t more, int64_t end_ns);
  Status return_to(const AllVersions& then, int64_t end_ns);
  Status return_at_once(AllVersions then, int64_t end_ns);
  Status return_by_pieces(AllVersions then, int64_t end_ns);
  Status settle_for(AllVersions wanted, const AllVersions& otherwise, int64_t end_ns);
  // `then` again, with its copies of a resident layer, its shared experts and routers.
  Result<std::shared_ptr<const LayerVersions>> revive(
      StoreLayer& layer, const std::shared_ptr<const LayerVersions>& then, int64_t end_ns);
  std::vector<Need> needs_of(StoreLayer& layer, const LayerVersions& then, bool ready) const;

  // ---- who serves, and who leaves then (versions.cc)
  std::shared_ptr<Version> add_version(uint32_t number, const WeightSource& from);
  // The only maker of versions: they are in layer.made.
  std::shared_ptr<LayerVersions> make_versions(StoreLayer& layer, const LayerVersions& like);
  Result<std::shared_ptr<const LayerVersions>> next_versions(
      StoreLayer& layer, std::span<const int32_t> experts, bool block,
      const std::shared_ptr<Version>& version);
  std::shared_ptr<const LayerVersions> mix(StoreLayer& layer, const LayerVersions& theirs,
                                           std::span<const Need> experts, bool block);
  Status switch_to(AllVersions next, double next_share, const AllVersions& before, int64_t end_ns);
  AllVersions serving_now() const;
  AllVersions previous_now() const;
  void set_previous(AllVersions previous);
  bool has(std::shared_ptr<const LayerVersions> StoreLayer::*what) const;
  void set_goal(const AllVersions& versions_then, std::span<const LayerTarget> targets,
                uint32_t version);
  void clear_goal();
  // Waits until no forward holds versions that are not served any more. Outside the gate, for such
  // a forward may wait there.
  Status wait_for_old_forwards(int64_t end_ns);
  // Waits for old forwards, then frees the copies that neither a table nor rollback() names, and
  // that nobody leases; with `kept`, those for rollback() too.
  Status sweep(bool kept, int64_t end_ns);
  // Sweeps, and shrinks every class to its slots: copies of two versions may have been more.
  // Whoever is late then is waited for by the next reload or forget_previous().
  Status leave_old(bool kept, int64_t end_ns);
  void trim();

  FifoGate admin;  // one of reload, rollback, budget change, scrub at a time; outside the gate

  // With the mutex.
  std::vector<LayerGoal> goal;  // by store layer: no sweep frees its copies; empty: none
  uint32_t newest_version = 0;
};

}  // namespace moe
