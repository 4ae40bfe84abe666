// The inside of an ExpertStore, shared with the model room: forwards read tables, the store alone
// changes them.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "core/services.h"
#include "moe/expert_gemm.h"
#include "moe/expert_store.h"
#include "store/epoch.h"
#include "store/expert_table.h"
#include "store/slot_pool.h"

namespace moe {

// One copy of one expert, in one slot.
struct ExpertCopy {
  int64_t slot_class = -1;
  int64_t slot = -1;
  CopyState state = CopyState::empty;
  uint32_t version = 0;
  uint64_t digest = 0;
  Status reason;
};

// A backend, and the slots that it reads.
struct Compute {
  const ExpertGemm* gemm = nullptr;
  SlotLayout layout;
  int64_t slot_class = -1;
};

struct StoreLayer {
  LayerSpec spec;
  size_t index = 0;  // among the store's layers
  Compute routed;
  Compute shared;  // gemm is null if the layer has no shared expert

  std::atomic<const ExpertTable*> table{nullptr};  // the newest; owned by Impl::tables

  std::vector<ExpertCopy> experts;  // by logical expert; guarded by Impl::mutex
  ExpertCopy shared_copy;
};

struct ExpertStore::Impl {
  Impl(const WeightSource& weight_source, ExpertStoreOptions store_options, Services resolved)
      : source(weight_source), options(std::move(store_options)), services(std::move(resolved)) {}
  ~Impl();

  // ---- for forwards: no locks

  // The layer with the checkpoint's index `layer`, or null.
  StoreLayer* find(int32_t layer);
  // What serves `layer` now. Call inside an EpochPin; valid until the pin ends.
  static const ExpertTable& table(const StoreLayer& layer) {
    return *layer.table.load(std::memory_order_seq_cst);
  }

  // Which backend computes what, and why the others were passed over.
  std::string describe() const;

  // ---- for the store itself

  Status choose_backends();
  Status size_pools();
  Status load_all();
  Status load_copy(StoreLayer& layer, int32_t expert, ExpertCopy& copy);
  Result<std::shared_ptr<const LayerBlock>> load_block(const StoreLayer& layer) const;
  // Makes `next` the newest table of `layer` and frees the one before it after a grace period.
  Status publish(StoreLayer& layer, std::unique_ptr<const ExpertTable> next);

  std::byte* address(const ExpertCopy& copy) const {
    return pools[static_cast<size_t>(copy.slot_class)].address(copy.slot);
  }

  const WeightSource& source;
  ExpertStoreOptions options;
  Services services;
  std::vector<LayerSpec> specs;                        // ascending in layer
  std::vector<std::unique_ptr<StoreLayer>> layers;     // parallel to specs
  std::vector<std::unique_ptr<ExpertGemm>> backends;   // made here; Compute points to them
  std::vector<SlotPool> pools;                         // one per size class
  EpochReaders readers;

  mutable std::mutex mutex;  // guards copies, pools and publishing; never taken by a forward
  std::atomic<uint64_t> epoch{0};
};

}  // namespace moe
