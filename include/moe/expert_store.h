// An ExpertStore owns expert weights: slots of a device's pool, and the table, published by epoch,
// that says which ready copy serves which expert. Whoever moves, loads, replaces or drops an expert
// fills a free slot, verifies it, publishes the next table, and reuses the old slot once every
// reader has left the epochs that name it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "moe/export.h"
#include "moe/host.h"
#include "moe/status.h"
#include "moe/tensor.h"
#include "moe/weights.h"

namespace moe {

class ExpertGemm;

// Of one copy. Being ready and being named by a table are separate facts.
enum class CopyState : int32_t { empty, loading, verifying, ready, draining, failed };

MOE_API const char* to_string(CopyState state);  // "ready"

// The state of one copy, and why.
struct ExpertHealth {
  CopyState state = CopyState::empty;
  uint32_t version = 0;
  uint64_t digest = 0;  // XXH3 over the packed bytes
  Status reason;        // why it failed
};

// What a store holds, and on which device.
struct ExpertStoreOptions {
  Device device = {};
  size_t expert_memory = 0;                 // bytes for slots; 0: every expert resident
  std::vector<int32_t> layers;              // empty: all of the source's
  std::string gemm;                         // name of the backend whose layout the slots have
  const ExpertGemm* expert_gemm = nullptr;  // host's own; must outlive the store
  HostServices host;
  Progress progress = nullptr;  // called while experts load; false cancels
  void* progress_argument = nullptr;
};

// Sizes of a store at one moment.
struct ExpertStoreStats {
  size_t pool_bytes = 0;  // committed for slots
  size_t slot_bytes = 0;  // used by ready copies
  int64_t slots = 0;
  int64_t ready = 0;
  uint64_t epoch = 0;  // of the newest table
};

// Safe for concurrent use from several threads.
class MOE_API ExpertStore {
 public:
  // Loads every expert of the chosen layers. `source` must outlive the store. On failure nothing
  // stays allocated, and the status names the layer, expert and tensor.
  static Result<ExpertStore> open(const WeightSource& source,
                                  const ExpertStoreOptions& options = {});

  ExpertStore(ExpertStore&&) noexcept;
  ExpertStore& operator=(ExpertStore&&) noexcept;
  ~ExpertStore();

  const std::vector<LayerSpec>& layers() const noexcept;  // the chosen ones, ascending
  Device device() const noexcept;                         // where the slots lie

  // State of the copy that the newest table names.
  Result<ExpertHealth> health(int32_t layer, int32_t expert) const;

  ExpertStoreStats stats() const;  // at the moment of the call

  struct Impl;
  Impl* impl() const noexcept { return impl_.get(); }  // used by the library alone

 private:
  explicit ExpertStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
