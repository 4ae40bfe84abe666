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
  uint64_t digest = 0;                 // over the packed bytes: XXH3, or the GPU's own sum
  Status reason;                       // why it failed
};

// One copy of an expert, wherever it came from.
struct ExpertCopyInfo {
  uint32_t version = 0;                // of its weights
  CopyState state = CopyState::empty;  // never empty: such a copy does not exist
  uint64_t digest = 0;                 // as in ExpertHealth; 0 before it is verified
  int64_t slot = -1;                   // in the pool of its size
  bool serving = false;                // the newest table names it
  int32_t leases = 0;                  // waves that compute with it now
};

// What a store does in the background or finds, for the host's sink.
enum class StoreEventKind : int32_t {
  load_failed,      // an expert could not be read or verified; the status says why
  reload_done,      // a new version serves
  reload_failed,    // nothing changed
  rollback_done,    // the version before serves again
  scrub_found,      // a slot's bytes changed; the table names it until it is repaired
  scrub_repaired,   // ... and a fresh copy took its place
  scrub_failed,     // ... and none could be read: the expert is not served until it can
  thrash_began,     // most experts that are needed were evicted shortly before
  thrash_ended,     // no longer
  pressure,         // the budget shrank: experts were evicted
  background_late,  // a background job has shown no sign of life for long
};
MOE_API const char* to_string(StoreEventKind kind);  // "reload_done"

// One of them.
struct StoreEvent {
  StoreEventKind kind = StoreEventKind::load_failed;  // what happened
  int32_t layer = -1;                                 // -1: the whole store
  int32_t expert = -1;                                // -1: the whole layer, or its shared expert
  int64_t at_ns = 0;                                  // by the host's clock
  Status status;                                      // ok, or what went wrong
};

// Receives events. Called from any thread, never under one of the library's locks.
class MOE_API EventSink {
 public:
  virtual ~EventSink();
  virtual void event(const StoreEvent& event) noexcept = 0;  // valid during the call
};

// Whom a store that pages loads before a forward asks for them.
enum class PrefetchKind : int32_t {
  none,        // nobody
  next_gate,   // whom the next layer's router chooses for this layer's rows
  activation,  // what the remembered sequence that resembles the current one most used next
};

// Where the weights of one version are read from.
struct VersionSource {
  uint32_t version = 0;                  // as the snapshot numbers it
  const WeightSource* source = nullptr;  // not owned; must outlive the store
};

// What a store goes on from. See snapshot.h.
struct RestoreOptions {
  std::string snapshot;  // file that save_snapshot() wrote; empty: the store begins anew

  // Of the versions in the snapshot; one at most may be missing, which is what the store is opened
  // with.
  std::vector<VersionSource> sources;
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

  // While the governor sees that it saves more time than it costs; at most top_k experts at once.
  // CPU.
  PrefetchKind prefetch = PrefetchKind::none;

  // A thread of the store's own scrubs about this many bytes a second; 0: scrub() alone does.
  int64_t scrub_bytes_per_second = 0;

  // How experts are kept; empty: as the source has them. int8 and int4 quantise while they load.
  std::optional<Format> format;

  // Opening fails, and nothing is changed, if the snapshot is damaged (data_loss), of a later
  // format (unimplemented), of another model, layout or policy (failed_precondition), or if the
  // weights are not those that it was taken of (data_loss). CPU.
  RestoreOptions restore;

  std::vector<int32_t> layers;              // empty: all of the source's
  std::string gemm;                         // name of the backend whose layout the slots have
  ExpertGemmOptions gemm_options;           // of a backend that is made here
  const ExpertGemm* expert_gemm = nullptr;  // host's own; must outlive the store
  HostServices host;                        // not owned; must outlive the store
  EventSink* events = nullptr;              // not owned; must outlive the store
  Progress progress = nullptr;              // called while experts load; false cancels
  void* progress_argument = nullptr;        // passed through to `progress`
};

// How much of a model is replaced by one table.
enum class ReloadStep : int32_t {
  all,     // everything at once: no forward sees old and new; needs slots for both
  layer,   // layer by layer: each forward is all old or all new
  expert,  // expert by expert, in the two spare slots: meanwhile rows may mix old and new experts
};

// Which experts a reload replaces, and how.
struct ReloadOptions {
  // {layer, kSharedExpert}: the layer's router and shared expert. Empty: everything.
  std::vector<ExpertId> experts;
  ReloadStep step = ReloadStep::all;  // what is published together

  // Of the requests that get the new version; below 1 both serve until set_share(1) or rollback().
  // Needs ReloadStep::all.
  double share = 1;
  bool finite = true;         // refuse weights that are not finite
  int32_t loads_at_once = 1;  // more is faster and takes more from forwards
  int64_t deadline_ns = 0;    // from the call; 0: ten minutes
};

// Weights from one source, as far as they are in use.
struct VersionInfo {
  uint32_t version = 0;   // 1 is what the store was opened with
  std::string source;     // its name
  int64_t serving = 0;    // routed experts that tables name in this version
  int64_t candidate = 0;  // ... for a share of the requests
  int64_t kept = 0;       // ... for rollback()
};

// What one scrub found.
struct ScrubReport {
  int64_t copies = 0;    // compared with their digests
  int64_t bytes = 0;     // of these
  int64_t found = 0;     // that had changed
  int64_t repaired = 0;  // of these, by a fresh copy from the source
  bool wrapped = false;  // the end of the last pool was reached
};

// Of all scrubs.
using ScrubStats = ScrubReport;

// A sign of life of a background thread.
struct Heartbeat {
  std::string name;       // "loader 0"
  bool busy = false;      // has a job
  int64_t silent_ns = 0;  // since its last sign of life; it need not give any while idle
  int64_t jobs = 0;       // done so far
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

// What prefetching did, by the store's own clock.
struct PrefetchStats {
  int64_t loads = 0;     // experts that were loaded early
  int64_t used = 0;      // of these, the ones that a forward needed then
  int64_t saved_ns = 0;  // reading that no forward waited for
  int64_t cost_ns = 0;   // waits behind early reads, reading again what left for them, predicting
  int64_t won = 0;       // windows in which it saved more than it cost
  int64_t lost = 0;      // ... or less: it paused then
  bool enabled = false;  // it is on now
};

// Sizes of a store at one moment.
struct ExpertStoreStats {
  size_t pool_bytes = 0;   // committed for slots
  size_t used_bytes = 0;   // of slots that hold something
  size_t slot_bytes = 0;   // of one slot; the largest if layers differ
  int64_t slots = 0;       // spare ones and those of shared experts included
  int64_t capacity = 0;    // most routed experts that can be resident at once
  int64_t ready = 0;       // routed experts that are
  uint64_t epoch = 0;      // of the newest table
  PagingStats paging;      // all 0 where everything is resident
  PrefetchStats prefetch;  // all 0 without
  ScrubStats scrub;        // of all scrubs
  bool thrashing = false;  // experts return soon after they were evicted

  // Bytes of slots by use; with free_bytes they add up to pool_bytes.
  size_t serving_bytes = 0;       // named by tables
  size_t kept_bytes = 0;          // ready and not named: for rollback(), or of forwards in flight
  size_t moving_bytes = 0;        // loading, verifying or draining
  size_t free_bytes = 0;          // committed and empty
  size_t largest_free_bytes = 0;  // adjacent free slots, committed or not
};

// Where a request stands in [0, 1): a candidate with a share above it serves all its rows, in every
// layer. Rows without a request id are never served by a candidate. The upper 53 bits of
//   z = id + 0x9e3779b97f4a7c15;        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
//   z = (z ^ z >> 27) * 0x94d049bb133111eb;  z = z ^ z >> 31          (SplitMix64)
// times 2^-53: which requests get the candidate is known beforehand, and a larger share adds some.
MOE_API double share_point(uint64_t request_id);

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

  // State of the copy that serves the expert (kSharedExpert: the shared one); `empty` if it is not
  // resident, `failed` with the reason if it could not be loaded.
  Result<ExpertHealth> health(int32_t layer, int32_t expert) const;
  // All its copies.
  Result<std::vector<ExpertCopyInfo>> copies(int32_t layer, int32_t expert) const;

  // A sequence (prompt and answer) is over: tells the eviction policies.
  void sequence_ended();

  ExpertStoreStats stats() const;             // at the moment of the call
  std::vector<Heartbeat> heartbeats() const;  // of the store's own threads

  // ---- versions. One of the calls from here on works at a time; others wait for their turn.
  // Forwards go on meanwhile, each with the versions that it found at its entry.

  // Loads experts from `from` beside those that serve, verifies them (shapes, finite values,
  // digests), and publishes tables that name them. Of a paged layer an expert that is resident is
  // read once and takes its old copy's place if the step is ReloadStep::expert; in larger steps as
  // far as the spare slots hold both. The others are read once to verify them, and again when they
  // are needed. On an error nothing changed. Returns the number of the new version. `from` must
  // have the same layers, in the same formats unless ExpertStoreOptions::format converts them (else
  // invalid_argument says what differs); it must stay readable as long as versions() lists it.
  Result<uint32_t> reload(const WeightSource& from, const ReloadOptions& options = {});

  // With a candidate (ReloadOptions::share): it goes. Otherwise the versions before the last reload
  // serve again, from kept copies or read again; a second call returns to the newer ones. Where
  // memory does not hold both versions of a layer, that is done expert by expert: meanwhile rows
  // may mix them. On an error what served goes on to serve, and is read again if its copies went.
  // failed_precondition if there is nothing to return to.
  Status rollback(int64_t deadline_ns = 0);

  // The candidate's share of the requests, in [0, 1]; 1 ends the trial: it serves alone.
  Status set_share(double share);

  // Gives up rollback(): frees the copies that were kept, and the sources that only they need.
  Status forget_previous(int64_t deadline_ns = 0);

  std::vector<VersionInfo> versions() const;  // ascending

  // ---- memory and health

  // As ExpertStoreOptions::expert_memory, while forwards go on. Less: kept copies go, then experts
  // are evicted. More: they come when they are needed. resource_exhausted, and no change, if it is
  // less than the least that works, which the message names. On a GPU the store has to page, in the
  // library's own memory: failed_precondition otherwise.
  Status set_expert_memory(size_t bytes, int64_t deadline_ns = 0);

  // Compares ready copies with their digests, for about `max_bytes` from where the last call ended
  // (0: all). What changed is read again and replaced; where that fails, a paged expert is read
  // when it is needed next, and one of a resident layer on a GPU stays as it is. Call it from a
  // thread of your own.
  Result<ScrubReport> scrub(int64_t max_bytes = 0, int64_t deadline_ns = 0);

  struct Impl;
  Impl* impl() const noexcept { return impl_.get(); }  // used by the library alone

 private:
  explicit ExpertStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
