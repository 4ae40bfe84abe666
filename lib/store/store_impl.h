// The inside of an ExpertStore, shared with the model room: forwards read tables and lease copies,
// the store alone changes them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "core/services.h"
#include "moe/eviction.h"
#include "moe/expert_gemm.h"
#include "moe/expert_store.h"
#include "store/device.h"
#include "store/epoch.h"
#include "store/expert_copy.h"
#include "store/expert_table.h"
#include "store/fifo_gate.h"
#include "store/keeper.h"
#include "store/loader.h"
#include "store/prefetch.h"
#include "store/residency.h"
#include "store/slot_pool.h"
#include "store/snapshot_file.h"
#include "store/thrash.h"

namespace moe {

constexpr int64_t kSpareSlots = 2;  // of each size; committed when first needed

// Slots of one size.
struct SlotClass {
  int64_t wanted = 0;  // routed experts of all layers
  int64_t shared = 0;  // shared ones
  size_t stride = 0;   // bytes of a slot
  std::optional<SlotPool> pool;
  std::unique_ptr<EvictionPolicy> policy;  // null: the host's
  std::unique_ptr<Residency> residency;    // of the routed copies; null if there are none
  std::vector<ExpertCopy> copies;          // by slot
  Thrash thrash;
  int64_t late = 0;  // copies that are so

  bool paged() const { return residency && residency->slots() < wanted; }
};

// A copy, by where it lies.
struct CopyRef {
  size_t slot_class = 0;
  int64_t slot = -1;
};

// A backend, and the slots that it reads.
struct Compute {
  const ExpertGemm* gemm = nullptr;
  SlotLayout layout;
  size_t slot_class = 0;
};

struct StoreLayer {
  LayerSpec spec;
  size_t index = 0;  // among the store's layers
  Compute routed;
  Compute shared;  // gemm is null if the layer has no shared expert

  std::atomic<const ExpertTable*> table{nullptr};  // the newest

  // Guarded by Impl::mutex.
  std::vector<StoreExpert> experts;  // by logical expert
  StoreExpert shared_expert;
  std::shared_ptr<const LayerVersions> serving;    // what the next table names
  std::shared_ptr<const LayerVersions> candidate;  // ditto, for a share of the rows; or null
  std::shared_ptr<const LayerVersions> previous;   // what rollback() returns to; or null
  std::vector<std::unique_ptr<ExpertTable>> spare_tables;
};

// What one wave of a forward holds: experts that stay in their slots until it is released.
struct Wave {
  struct Member {
    Need need;
    const std::byte* slot = nullptr;
    int64_t slot_index = -1;
  };
  std::vector<Member> members;  // in the order of `needed`
};

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

// An expert that is loaded while the store opens.
struct FirstLoad {
  StoreLayer* layer = nullptr;
  Need need;
  int64_t slot = -1;
};

// What comes and what goes, of whoever is inside the gate. See mover.cc.
struct Move {
  struct Filling {
    StoreLayer* layer = nullptr;
    Need need;
    int64_t slot = -1;
    Status status;
  };
  std::vector<CopyRef> leaving;  // draining
  std::vector<Filling> filling;

  void clear() { leaving.clear(), filling.clear(); }
  // So that nothing allocates once things are decided.
  void reserve(size_t count) { leaving.reserve(count), filling.reserve(count); }
};

// A ready copy as a scrub found it.
struct Inspected {
  CopyRef ref;
  StoreLayer* layer = nullptr;
  Need need;
  std::span<const std::byte> bytes;
  uint64_t digest = 0;
};

struct ExpertStore::Impl {
  Impl(const WeightSource& weight_source, ExpertStoreOptions store_options, Services resolved)
      : source(weight_source), options(std::move(store_options)), services(std::move(resolved)) {}
  ~Impl();

  // As ExpertStore::open; `make_device` null: slots lie in host memory.
  using DeviceMaker = decltype(&open_cuda_store);
  static Result<std::unique_ptr<Impl>> open(const WeightSource& source,
                                            const ExpertStoreOptions& options,
                                            DeviceMaker make_device, Schedule* schedule = nullptr);
  // As ExpertStore::open, with threads that a test schedules; null: with its own.
  static Result<ExpertStore> open_scheduled(const WeightSource& source,
                                            const ExpertStoreOptions& options, Schedule* schedule);

  // ---- for forwards

  // The layer with the checkpoint's index `layer`, or null.
  StoreLayer* find(int32_t layer);
  // What serves `layer` now. Call inside an EpochPin; valid until the pin ends.
  static const ExpertTable& table(const StoreLayer& layer) {
    return *layer.table.load(std::memory_order_seq_cst);
  }
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
  void keep(const Move& m);
  Status carry_out(StoreLayer& layer, int64_t end_ns, bool early);
  void settle(const Move& m, bool early);

  // The layer after `after` if its experts are worth fetching early now, by `kind`; or null.
  StoreLayer* layer_to_prefetch(const StoreLayer& after, PrefetchKind kind);
  // Has experts of `layer` loaded in the background, the most urgent first, and returns. The guess
  // took `cost_ns`.
  void prefetch(StoreLayer& layer, std::span<const int32_t> experts, int64_t cost_ns);
  void prefetch_predicted(const StoreLayer& after);
  Status run_prefetch();
  Status start_prefetching();
  void tell_thrash(const StoreLayer& layer);

  // Which backend computes what, and why the others were passed over.
  std::string describe() const;

  // ---- for the store itself

  Status choose_backends();
  Status size_pools();
  Status make_policies();
  // ---- what it begins with (first_tables.cc), and what it writes down (snapshot.cc)
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

  // Routed slots of each class with `expert_memory` bytes, spare ones excluded; or
  // resource_exhausted with the least that works.
  Result<std::vector<int64_t>> routed_slots(size_t expert_memory) const;
  Status start_loader();

  // ---- the one mover (mover.cc); between enter and leave of `gate`, without the mutex

  // Publishes tables without the copies that leave, waits for the grace period, frees their slots.
  // On an error they stay.
  Status drain(Move& move, int64_t end_ns);
  // Gives every filling a slot, reads and verifies it in the background, `at_once` at a time, and
  // waits. Afterwards its copy is ready or gone (status); no table names it yet.
  Status fill(Move& move, int64_t end_ns, int at_once);
  // Reads, packs and verifies an expert into `slot`; its digest. Changes nothing else.
  Result<uint64_t> pack(const StoreLayer& layer, int32_t expert, const Version& version,
                        std::byte* slot);
  Status load(StoreLayer& layer, Need need, int64_t slot,
              std::shared_ptr<Version> version) noexcept;
  Result<int64_t> take_slot(StoreLayer& layer, Need need);  // with the mutex; state loading
  void free_slot(CopyRef ref);                              // with the mutex; state empty

  // What follows needs the mutex, and the gate from open() on.
  // Makes `move` empty, with room for `count` copies that come and as many that go.
  void begin_move(size_t count);
  // Gives back what late fills left.
  void settle_late();
  void settle_late(CopyRef ref);
  void forget(const StoreLayer& layer, Need need);
  bool has_other(const StoreLayer& layer, const ExpertCopy& copy) const;
  // So that publish() allocates nothing on the host.
  void reserve_tables();
  // A table of the copies that are ready now becomes the newest; the old one is retired.
  // On an error the old one stays.
  Status publish(StoreLayer& layer);
  void write(StoreLayer& layer, const std::shared_ptr<const LayerVersions>& versions,
             Serving& serving);
  void recycle(std::unique_ptr<ExpertTable> table);
  // Waits until no reader uses a table that was retired before this call, and recycles those.
  // Call without the mutex.
  Status wait_for_grace(int64_t end_ns);

  // The mutex. Every critical section begins here, so that tests can choose who comes next.
  std::unique_lock<std::mutex> locked() const {
    if (schedule) schedule->point("lock");
    return std::unique_lock(mutex);
  }
  bool breaks(Rule rule) const { return schedule && schedule->breaks(rule); }
  // Until ready(), which is pure and needs the mutex, holds; deadline_exceeded if end_ns passes.
  // Whoever makes it hold notifies `changed`.
  template <class Ready>
  Status wait(Ready ready, int64_t end_ns) {
    if (schedule)
      schedule->wait("changed", [&] { return ready() || services.clock().now_ns() >= end_ns; });
    std::unique_lock lock(mutex);
    if (wait_until(changed, lock, services.clock(), end_ns, ready)) return {};
    return Status(StatusCode::deadline_exceeded, "the deadline passed while experts were moved");
  }

  // ---- versions (reload.cc)
  using AllVersions = std::vector<std::shared_ptr<const LayerVersions>>;  // by store layer
  Result<uint32_t> reload(const WeightSource& from, const ReloadOptions& wanted);
  Status rollback(int64_t deadline_ns);
  Status set_share(double share);
  Status forget_previous(int64_t deadline_ns);
  Status load_target(const LayerTarget& target, const Version& version, int at_once,
                     int64_t end_ns);
  Status load_needs(StoreLayer& layer, std::span<const Need> needs, int at_once, int64_t end_ns);
  Status load_beside(std::span<const Need> needs, StoreLayer& layer, int64_t end_ns, int at_once);
  Result<int64_t> free_slots(const Compute& compute, int64_t count, int64_t end_ns);
  Status make_room(const Compute& compute, int64_t count, int64_t more, int64_t end_ns);
  Result<std::shared_ptr<const LayerVersions>> next_versions(
      StoreLayer& layer, std::span<const int32_t> experts, bool block,
      const std::shared_ptr<Version>& version);
  Status switch_to(AllVersions next, double next_share, const AllVersions& before, int64_t end_ns);
  Status return_to(const AllVersions& then, int64_t end_ns);
  Status settle_for(AllVersions wanted, const AllVersions& otherwise, int64_t end_ns);
  Status return_at_once(AllVersions then, int64_t end_ns);
  Status return_by_pieces(AllVersions then, int64_t end_ns);
  std::vector<Need> needs_of(StoreLayer& layer, const LayerVersions& then, bool ready) const;
  std::shared_ptr<const LayerVersions> mix(StoreLayer& layer, const LayerVersions& theirs,
                                           std::span<const Need> experts, bool block);
  AllVersions serving_now() const;
  AllVersions previous_now() const;
  void set_previous(AllVersions previous);
  void set_goal(const AllVersions& versions_then, std::span<const LayerTarget> targets,
                uint32_t version);
  void clear_goal();
  bool has(std::shared_ptr<const LayerVersions> StoreLayer::*what) const;
  // Publishes all layers.
  Status publish_all();
  // Frees the copies that neither a table nor rollback() names, and that nobody leases; with
  // `kept`, those for rollback() too.
  Status sweep(bool kept, int64_t end_ns);
  // Waits until no forward holds versions that are not served any more. Outside the gate, for such
  // a forward may wait there.
  Status wait_for_old_forwards(int64_t end_ns);
  // Then sweeps, and shrinks every class to its slots: copies of two versions may have been more.
  // Whoever is late then is waited for by the next reload or forget_previous().
  Status leave_old(bool kept, int64_t end_ns);
  // `then` again, with its copies of a resident layer, its shared experts and routers.
  Result<std::shared_ptr<const LayerVersions>> revive(
      StoreLayer& layer, const std::shared_ptr<const LayerVersions>& then, int64_t end_ns);
  void trim();
  Result<std::shared_ptr<const LayerBlock>> make_block(StoreLayer& layer, const Version& version,
                                                       int64_t shared_slot);
  std::shared_ptr<Version> add_version(uint32_t number, const WeightSource& from);
  std::shared_ptr<Version> find_version(uint32_t number) const;  // with the mutex

  Status set_expert_memory(size_t bytes, int64_t deadline_ns);
  Status shrink(SlotClass& slots, int64_t end_ns);
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

  // Tells the host; never call it with the mutex.
  void tell(StoreEventKind kind, int32_t layer, int32_t expert, const Status& status) const {
    if (options.events)
      options.events->event({kind, layer, expert, services.clock().now_ns(), status});
  }

  SlotMemory slot_memory() const {
    if (device) return {&device->memory(), true, device.get()};
    return {options.host.memory};
  }
  const Compute& compute_of(const StoreLayer& layer, int32_t expert) const {
    return expert == kSharedExpert ? layer.shared : layer.routed;
  }
  StoreExpert& record(StoreLayer& layer, int32_t expert) const {
    return expert == kSharedExpert ? layer.shared_expert
                                   : layer.experts[static_cast<size_t>(expert)];
  }
  ExpertCopy& copy_at(CopyRef ref) {
    return classes[ref.slot_class].copies[static_cast<size_t>(ref.slot)];
  }
  // The copy of that version, or null. Prefers one that is ready. Valid while the mutex is held.
  ExpertCopy* find_copy(const StoreLayer& layer, Need need) const;
  // The slot of the ready copy of that version, or -1. Takes the mutex.
  int64_t ready_slot(const StoreLayer& layer, Need need) const;
  int64_t slot_of(const Compute& compute, const ExpertCopy& copy) const {
    return &copy - classes[compute.slot_class].copies.data();
  }

  const WeightSource& source;  // of version 1
  ExpertStoreOptions options;
  Services services;
  std::unique_ptr<StoreDevice> device;                // null: the CPU; outlives its copies below
  std::vector<LayerSpec> specs;                       // ascending in layer
  std::vector<std::unique_ptr<StoreLayer>> layers;    // parallel to specs
  std::vector<std::unique_ptr<ExpertGemm>> backends;  // made here; Compute points to them
  EpochReaders readers;
  FifoGate gate;   // one move at a time is planned and made
  FifoGate admin;  // one of reload, rollback, budget change, scrub at a time; outside the gate

  mutable std::mutex mutex;         // guards what follows and the copies; never held while waiting
  std::condition_variable changed;  // a lease ended or a load finished
  std::vector<SlotClass> classes;
  std::vector<std::unique_ptr<ExpertTable>> retired;
  std::vector<std::shared_ptr<Version>> versions;  // ascending; of the sources that are in use
  std::vector<std::weak_ptr<const LayerVersions>> old_versions;  // that forwards may still hold
  uint32_t newest_version = 0;
  std::vector<LayerGoal> goal;  // by store layer: no sweep frees its copies; empty: none
  double share = 0;             // of the candidates
  uint64_t epoch = 0;
  PagingStats paging;
  Thrash::News thrash_news = Thrash::News::none;
  ScrubStats scrubbed;
  CopyRef scrub_at;  // where the next scrub begins
  bool loading_started = false;
  int loads_in_flight = 0;
  uint64_t changes = 0;          // counts what `changed` tells
  Schedule* schedule = nullptr;  // tests only
  Move move;                     // of whoever is inside the gate
  std::vector<Need> pending;
  std::vector<Residency::Decision> wave;

  std::unique_ptr<Prefetcher> prefetcher;  // null: none
  std::atomic<bool> prefetching{false};    // an early move is inside the gate

  Loader loader;  // its threads use everything above, as do the next ones
  Loader prefetch_thread;
  Keeper scrubber;
};

}  // namespace moe
