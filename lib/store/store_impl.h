// The inside of an ExpertStore, shared with the model room: forwards read tables and lease copies,
// the store alone changes them. store_state.h says of which layers it is built.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "store/keeper.h"
#include "store/prefetch.h"
#include "store/snapshot_file.h"
#include "store/versions.h"

namespace moe {

// What one wave of a forward holds: experts that stay in their slots until it is released.
struct Wave {
  struct Member {
    Need need;
    const std::byte* slot = nullptr;
    int64_t slot_index = -1;
  };
  std::vector<Member> members;  // in the order of `needed`
};

// An expert that is loaded while the store opens.
struct FirstLoad {
  StoreLayer* layer = nullptr;
  Need need;
  int64_t slot = -1;
};

// A ready copy as a scrub found it.
struct Inspected {
  CopyRef ref;
  StoreLayer* layer = nullptr;
  Need need;
  std::span<const std::byte> bytes;
  uint64_t digest = 0;
};

struct ExpertStore::Impl : Versions {
  using Versions::Versions;

  // As ExpertStore::open; `make_device` null: slots lie in host memory.
  using DeviceMaker = decltype(&open_cuda_store);
  static Result<std::unique_ptr<Impl>> open(const WeightSource& source,
                                            const ExpertStoreOptions& options,
                                            DeviceMaker make_device, Schedule* schedule = nullptr);
  // As ExpertStore::open, with threads that a test schedules; null: with its own.
  static Result<ExpertStore> open_scheduled(const WeightSource& source,
                                            const ExpertStoreOptions& options, Schedule* schedule);

  // ---- for forwards (paging.cc)

  // Tells the policy what a forward of a paged layer needs; once, before anything is acquired.
  // `experts` are distinct, in the order of use; `probabilities` as ExpertAccess says.
  void accessed(StoreLayer& layer, std::span<const int32_t> experts,
                std::span<const float> probabilities = {});
  // Makes at least one of `needed` (all different, in the order of use) resident and leases as many
  // as the slots allow, evicting none of `needed`. Call outside any pin: it may wait for readers,
  // reads and leases, but holds no lease while it does. On an error nothing is held. The caller
  // keeps the LayerVersions alive that name `needed`.
  Status acquire(StoreLayer& layer, std::span<const Need> needed, int64_t end_ns, Wave* wave);
  void release(StoreLayer& layer, Wave* wave);
  Result<bool> plan_wave(StoreLayer& layer, std::span<const Need> needed, bool early = false);
  Status make_wave(StoreLayer& layer, std::span<const Need> needed, int64_t end_ns);
  Status carry_out(StoreLayer& layer, int64_t end_ns, bool early);
  void settle(const Move& m, bool early);
  void tell_thrash(const StoreLayer& layer);

  // ---- experts that come early (prefetch.cc)

  // The layer after `after` if its experts are worth fetching early now, by `kind`; or null.
  StoreLayer* layer_to_prefetch(const StoreLayer& after, PrefetchKind kind);
  // Has experts of `layer` loaded in the background, the most urgent first, and returns. The guess
  // took `cost_ns`.
  void prefetch(StoreLayer& layer, std::span<const int32_t> experts, int64_t cost_ns);
  void prefetch_predicted(const StoreLayer& after);
  Status run_prefetch();
  Result<bool> prefetch_one(int64_t end_ns);
  Status start_prefetching();

  // ---- how it is opened (expert_store.cc), what it begins with (first_tables.cc), and what it
  // writes down (snapshot.cc)
  Status choose_backends();
  Status size_pools();
  Status make_policies();
  Status load_all();
  StoreSnapshot begin_anew() const;
  Status check_fits(const StoreSnapshot& snapshot) const;
  Status check_consistent(const StoreSnapshot& snapshot) const;
  Status add_versions(const StoreSnapshot& first);
  Result<std::vector<FirstLoad>> first_residents(const StoreSnapshot& first);
  Status load_first(std::vector<FirstLoad> loads);
  Result<std::shared_ptr<const LayerVersions>> first_versions(
      StoreLayer& layer, const StoreSnapshot::Table& then,
      std::map<uint32_t, std::shared_ptr<const LayerBlock>>& blocks);
  Status make_first_tables(const StoreSnapshot& first);
  Result<StoreSnapshot> snapshot() const;
  // What `snapshot` has of the policy of these slots, or null.
  const StoreSnapshot::Policy* policy_in(const StoreSnapshot& snapshot,
                                         const SlotClass& slots) const;
  // Which backend computes what, and why the others were passed over.
  std::string describe() const;

  // ---- the budget (budget.cc)

  // Routed slots of each class with `expert_memory` bytes, spare ones excluded; or
  // resource_exhausted with the least that works.
  Result<std::vector<int64_t>> routed_slots(size_t expert_memory) const;
  Status set_expert_memory(size_t bytes, int64_t deadline_ns);

  // ---- bytes that change (scrub.cc)
  Result<ScrubReport> scrub(int64_t max_bytes, int64_t deadline_ns);
  bool stays(CopyRef ref) const;
  Status start_scrubber();
  bool inspect_next(Inspected* next);
  Result<bool> intact(const Inspected& copy);
  Status repair(const Inspected& bad, int64_t end_ns);
  bool begin_replacement(const Inspected& bad);
  Status replace(const Inspected& bad, int64_t end_ns);
  Status replace_shared(const Inspected& bad, int64_t end_ns);
  Status renew_block(StoreLayer& layer, uint32_t number, int64_t fresh);

  // Inside the gate.
  std::vector<Need> pending;
  std::vector<Residency::Decision> wave;
  std::vector<int64_t> wave_slots;  // of its hits, leased; -1 of the others

  // With the mutex.
  Thrash::News thrash_news = Thrash::News::none;
  ScrubStats scrubbed;
  CopyRef scrub_at;  // where the next scrub begins

  std::unique_ptr<Prefetcher> prefetcher;  // null: none
  std::atomic<bool> prefetching{false};    // an early move is inside the gate

  Loader prefetch_thread;  // it and the next one use everything above
  Keeper scrubber;
};

}  // namespace moe
