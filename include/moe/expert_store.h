// An ExpertStore owns expert weights: slots of a device's pool, and the table, published by epoch,
// that says which ready copy serves which expert. Whoever moves, loads, replaces or drops an expert
// fills a free slot, verifies it, publishes the next table, and reuses the old slot once every
// reader has left the epochs that name it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "moe/eviction.h"
#include "moe/expert_gemm.h"
#include "moe/export.h"
#include "moe/host.h"
#include "moe/status.h"
#include "moe/tensor.h"
#include "moe/weights.h"

namespace moe {

// Of one copy. Being ready and being named by a table are separate facts.
enum class CopyState : int32_t { empty, loading, verifying, ready, draining, failed };

MOE_API const char* to_string(CopyState state);  // "ready"

// The state of one copy, and why.
struct ExpertHealth {
  CopyState state = CopyState::empty;  // of the copy
  uint32_t version = 0;                // counts from 1; 0: never loaded
  uint64_t digest = 0;                 // XXH3 over the packed bytes
  Status reason;                       // why it failed
};

// What a store holds, and on which device.
struct ExpertStoreOptions {
  Device device = {};  // whose memory the slots are

  // Bytes for slots; 0 keeps every expert resident. With fewer than the experts take, they are
  // loaded when a forward needs them; two slots of each size stay spare.
  size_t expert_memory = 0;
  std::string eviction;                       // name of a policy; empty: the default
  EvictionPolicy* eviction_policy = nullptr;  // host's own; needs experts of one size
  int32_t io_threads = 4;                     // reads at once while paging

  // How experts are kept; empty: as the source has them. int8 and int4 quantise while they load.
  std::optional<Format> format;

  std::vector<int32_t> layers;              // empty: all of the source's
  std::string gemm;                         // name of the backend whose layout the slots have
  ExpertGemmOptions gemm_options;           // of a backend that is made here
  const ExpertGemm* expert_gemm = nullptr;  // host's own; must outlive the store
  HostServices host;                        // not owned; must outlive the store
  Progress progress = nullptr;              // called while experts load; false cancels
  void* progress_argument = nullptr;        // passed through to `progress`
};

// Counted since a store was opened with less memory than its experts take. One per expert and wave.
struct PagingStats {
  int64_t hits = 0;          // needed and resident
  int64_t misses = 0;        // needed and loaded
  int64_t evictions = 0;     // experts that lost their slot to another
  int64_t waves = 0;         // of forwards that could not be served from one table
  int64_t bytes_loaded = 0;  // of the misses, as packed
  int64_t stall_ns = 0;      // time that forwards waited for experts
  int64_t load_errors = 0;   // reads that failed
};

// Sizes of a store at one moment.
struct ExpertStoreStats {
  size_t pool_bytes = 0;  // committed for slots
  size_t used_bytes = 0;  // of slots that hold something
  size_t slot_bytes = 0;  // of one slot; the largest if layers differ
  int64_t slots = 0;      // spare ones and those of shared experts included
  int64_t capacity = 0;   // most routed experts that can be resident at once
  int64_t ready = 0;      // routed experts that are
  uint64_t epoch = 0;     // of the newest table
  PagingStats paging;     // all 0 where everything is resident
};

// Safe for concurrent use from several threads.
class MOE_API ExpertStore {
 public:
  // Loads every expert of the chosen layers, or none yet if expert_memory is too small for all.
  // `source` must outlive the store. On failure nothing stays allocated, and the status names the
  // layer, expert and tensor; resource_exhausted says the least that expert_memory may be.
  static Result<ExpertStore> open(const WeightSource& source,
                                  const ExpertStoreOptions& options = {});

  ExpertStore(ExpertStore&&) noexcept;
  ExpertStore& operator=(ExpertStore&&) noexcept;
  ~ExpertStore();

  const std::vector<LayerSpec>& layers() const noexcept;  // the chosen ones, ascending
  Device device() const noexcept;                         // where the slots lie

  // State of the expert's copy; `empty` if it is not resident.
  Result<ExpertHealth> health(int32_t layer, int32_t expert) const;

  // A sequence (prompt and answer) is over: tells the eviction policies.
  void sequence_ended();

  ExpertStoreStats stats() const;  // at the moment of the call

  struct Impl;
  Impl* impl() const noexcept { return impl_.get(); }  // used by the library alone

 private:
  explicit ExpertStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
