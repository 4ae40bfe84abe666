// The inside of an ExpertStore, shared with the model room: forwards read tables and lease copies,
// the store alone changes them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/services.h"
#include "moe/eviction.h"
#include "moe/expert_gemm.h"
#include "moe/expert_store.h"
#include "store/device.h"
#include "store/epoch.h"
#include "store/expert_table.h"
#include "store/fifo_gate.h"
#include "store/loader.h"
#include "store/slot_pool.h"

namespace moe {

// One copy of one expert. Guarded by Impl::mutex, but for the slot's bytes while it is loading.
struct ExpertCopy {
  int64_t slot = -1;  // -1: holds none
  CopyState state = CopyState::empty;
  uint32_t version = 0;
  uint64_t digest = 0;
  Status reason;
  int32_t leases = 0;      // waves that use it now
  uint64_t needed_by = 0;  // serial of the last plan that must not evict it
};

// The only way a copy changes state; anything else is a bug of the store (assert).
void transition(ExpertCopy& copy, CopyState to);

// Slots of one size.
struct SlotClass {
  SlotPool pool;
  int64_t capacity = 0;  // most routed experts that are resident at once; shared experts and
                         // spare slots come on top
  int64_t resident = 0;  // routed experts that hold or are about to hold a slot
  EvictionPolicy* policy = nullptr;  // null: every expert stays
  std::unique_ptr<EvictionPolicy> own_policy;
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
  Compute shared;      // gemm is null if the layer has no shared expert
  bool paged = false;  // has fewer slots than experts

  std::atomic<const ExpertTable*> table{nullptr};  // the newest

  // Guarded by Impl::mutex.
  std::shared_ptr<const LayerBlock> block;
  std::vector<ExpertCopy> experts;  // by logical expert
  ExpertCopy shared_copy;
  int64_t resident = 0;
};

// What one wave of a forward holds: experts that stay in their slots until it is released.
struct Wave {
  struct Member {
    int32_t expert = -1;
    const std::byte* slot = nullptr;
  };
  std::vector<Member> members;  // ascending in expert
};

struct ExpertStore::Impl {
  Impl(const WeightSource& weight_source, ExpertStoreOptions store_options, Services resolved)
      : source(weight_source), options(std::move(store_options)), services(std::move(resolved)) {}
  ~Impl();

  // As ExpertStore::open; `make_device` null: slots lie in host memory.
  using DeviceMaker = decltype(&open_cuda_store);
  static Result<std::unique_ptr<Impl>> open(const WeightSource& source,
                                            const ExpertStoreOptions& options,
                                            DeviceMaker make_device);

  // ---- for forwards

  // The layer with the checkpoint's index `layer`, or null.
  StoreLayer* find(int32_t layer);
  // What serves `layer` now. Call inside an EpochPin; valid until the pin ends.
  static const ExpertTable& table(const StoreLayer& layer) {
    return *layer.table.load(std::memory_order_seq_cst);
  }
  // Tells the policy what a forward of a paged layer needs; once, before anything is acquired.
  // `experts` are distinct, in the order of use; `probabilities` as ExpertAccess says.
  void accessed(const StoreLayer& layer, std::span<const int32_t> experts,
                std::span<const float> probabilities = {});
  // Makes at least one of `needed` (in the order of use) resident and leases as many as the slots
  // allow, evicting none of `needed`. Call outside any pin: it may wait for readers, reads and
  // leases, but holds no lease while it does. On an error nothing is held.
  Status acquire(StoreLayer& layer, std::span<const int32_t> needed, int64_t end_ns, Wave* wave);
  void release(StoreLayer& layer, Wave* wave);

  // Which backend computes what, and why the others were passed over.
  std::string describe() const;

  // ---- for the store itself

  Status choose_backends();
  Status size_pools();
  Status make_policies();
  Status load_all();
  Status load_blocks();
  Status load_copy(StoreLayer& layer, int32_t expert, ExpertCopy& copy);

  // A table of the copies that are ready now becomes the newest; the old one is retired.
  // On an error the old one stays.
  Status publish(StoreLayer& layer);
  // Waits until no reader uses a table that was retired before this call, and frees those.
  // Call without the mutex.
  Status wait_for_grace(int64_t end_ns);

  SlotMemory slot_memory() const {
    if (device) return {&device->memory(), true, device.get()};
    return {options.host.memory};
  }
  const Compute& compute_of(const StoreLayer& layer, int32_t expert) const {
    return expert == kSharedExpert ? layer.shared : layer.routed;
  }
  std::byte* address(const StoreLayer& layer, int32_t expert, const ExpertCopy& copy) const {
    return classes[compute_of(layer, expert).slot_class].pool.address(copy.slot);
  }

  const WeightSource& source;
  ExpertStoreOptions options;
  Services services;
  std::unique_ptr<StoreDevice> device;                // null: the CPU; outlives its copies below
  std::vector<LayerSpec> specs;                       // ascending in layer
  std::vector<std::unique_ptr<StoreLayer>> layers;    // parallel to specs
  std::vector<std::unique_ptr<ExpertGemm>> backends;  // made here; Compute points to them
  EpochReaders readers;
  FifoGate gate;  // one wave is planned and loaded at a time

  mutable std::mutex mutex;         // guards what follows and the copies; never held while waiting
  std::condition_variable changed;  // a lease ended or a load finished
  std::vector<SlotClass> classes;
  std::vector<std::unique_ptr<const ExpertTable>> retired;
  uint64_t epoch = 0;
  uint64_t plans = 0;
  PagingStats paging;

  Loader loader;  // last: its threads use everything above
};

}  // namespace moe
