// What an ExpertStore consists of, and how to find something in it.
//
// The store is built in layers, each a struct that adds to the one below and calls nothing above:
//   StoreState    the data that everybody shares (here)
//   Mover         fills slots, publishes tables, frees slots (mover.h)
//   Versions      which versions serve: reload, rollback, shares (versions.h)
//   ExpertStore::Impl    what forwards and the host call: waves, prefetch, scrub (store_impl.h)
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "core/services.h"
#include "moe/eviction.h"
#include "moe/expert_gemm.h"
#include "moe/expert_store.h"
#include "store/device.h"
#include "store/epoch.h"
#include "store/expert_copy.h"
#include "store/expert_table.h"
#include "store/residency.h"
#include "store/schedule.h"
#include "store/slot_pool.h"
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
  ~StoreLayer() { delete table.load(); }

  LayerSpec spec;
  size_t index = 0;  // among the store's layers
  Compute routed;
  Compute shared;  // gemm is null if the layer has no shared expert

  std::atomic<const ExpertTable*> table{nullptr};  // the newest; owned

  // Guarded by StoreState::mutex.
  std::vector<StoreExpert> experts;  // by logical expert
  StoreExpert shared_expert;
  std::shared_ptr<const LayerVersions> serving;          // what the next table names
  std::shared_ptr<const LayerVersions> candidate;        // ditto, for a share of the rows; or null
  std::shared_ptr<const LayerVersions> previous;         // what rollback() returns to; or null
  std::vector<std::weak_ptr<const LayerVersions>> made;  // all that live: forwards may hold them
  std::vector<std::unique_ptr<ExpertTable>> spare_tables;
};

struct StoreState {
  StoreState(const WeightSource& weight_source, ExpertStoreOptions store_options, Services resolved)
      : source(weight_source), options(std::move(store_options)), services(std::move(resolved)) {}

  // The layer with the checkpoint's index `layer`, or null.
  StoreLayer* find(int32_t layer);
  // What serves `layer` now. Call inside an EpochPin; valid until the pin ends.
  static const ExpertTable& table(const StoreLayer& layer) {
    return *layer.table.load(std::memory_order_seq_cst);
  }

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
  // Whether another copy of the same version is ready.
  bool has_other(const StoreLayer& layer, const ExpertCopy& copy) const;
  // The slot of the ready copy of that version, or -1. Takes the mutex.
  int64_t ready_slot(const StoreLayer& layer, Need need) const;
  int64_t slot_of(const Compute& compute, const ExpertCopy& copy) const {
    return &copy - classes[compute.slot_class].copies.data();
  }
  std::shared_ptr<Version> find_version(uint32_t number) const;  // with the mutex

  const WeightSource& source;  // of version 1
  ExpertStoreOptions options;
  Services services;
  Schedule* schedule = nullptr;                       // tests only
  std::unique_ptr<StoreDevice> device;                // null: the CPU; outlives its copies below
  std::vector<LayerSpec> specs;                       // ascending in layer
  std::vector<std::unique_ptr<StoreLayer>> layers;    // parallel to specs
  std::vector<std::unique_ptr<ExpertGemm>> backends;  // made here; Compute points to them
  EpochReaders readers;

  mutable std::mutex mutex;         // guards what follows and the copies; never held while waiting
  std::condition_variable changed;  // a lease ended or a load finished
  uint64_t changes = 0;             // counts what `changed` tells
  std::vector<SlotClass> classes;
  std::vector<std::shared_ptr<Version>> versions;  // ascending; of the sources that are in use
  double share = 0;                                // of the candidates
  PagingStats paging;
};

}  // namespace moe
