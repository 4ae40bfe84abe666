// The one mover. Whoever pages, reloads, rolls back, changes the budget or repairs does this: fill
// free slots, verify them, publish the next tables, and reuse the old slots after the grace period.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "store/fifo_gate.h"
#include "store/loader.h"
#include "store/store_state.h"

namespace moe {

// What comes and what goes, of whoever is inside the gate.
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

// Copies of one size that waves compute with, or that are not ready.
class LeasedCopies final : public Residency::Leases {
 public:
  LeasedCopies(StoreState& store, size_t slot_class) : store_(store), slot_class_(slot_class) {}
  bool leased(ExpertId id, uint32_t version) const noexcept override;

 private:
  StoreState& store_;
  size_t slot_class_;
};

struct Mover : StoreState {
  using StoreState::StoreState;

  Status start_loader();
  Status start_quiet_loader();

  // ---- between enter and leave of `gate`, without the mutex

  // Publishes tables without the copies that leave, waits for the grace period, frees their slots.
  // On an error they stay.
  Status drain(Move& move, int64_t end_ns);
  // Gives every filling a slot, reads and verifies it in the background, `at_once` at a time, and
  // waits. Afterwards its copy is ready or gone (status); no table names it yet. `by` is `loader`
  // or, where no forward can wait for it, `quiet_loader`.
  Status fill(Move& move, int64_t end_ns, int at_once, Loader& by);
  // Evicts until the class fits its size.
  Status shrink(SlotClass& slots, int64_t end_ns);
  // Waits until no reader uses a table that was retired before this call, and recycles those.
  Status wait_for_grace(int64_t end_ns);
  // The router's tensors of one version, with the shared expert in slot `shared_slot` (-1: none).
  Result<std::shared_ptr<const LayerBlock>> make_block(StoreLayer& layer, const Version& version,
                                                       int64_t shared_slot);

  // Reads, packs and verifies an expert into `slot`; its digest. Changes nothing else.
  Result<uint64_t> pack(const StoreLayer& layer, int32_t expert, const Version& version,
                        std::byte* slot);
  // Fills the slot that take_slot() gave for `need`, which is of `version`. Runs on a loader's
  // thread, perhaps when nobody waits for it any more.
  Status load(StoreLayer& layer, Need need, int64_t slot,
              std::shared_ptr<Version> version) noexcept;

  // ---- with the mutex, and from open() on inside the gate

  Result<int64_t> take_slot(StoreLayer& layer, Need need);  // state loading
  void free_slot(CopyRef ref);                              // state empty
  // Makes `move` anew, with room for `count` copies that come and as many that go; those that were
  // late and have no place leave with it.
  void begin_move(size_t count);
  // Tells the residency of the copies of `move` that stay after all.
  void keep(const Move& move);
  // An expert without a ready copy is no resident.
  void forget(const StoreLayer& layer, Need need);
  // Leaves a copy to settle_late().
  void set_late(CopyRef ref);
  // What late fills left finds its place among the residents, or leaves with `move`.
  void settle_late();
  void settle_late(CopyRef ref);

  // ---- tables (tables.cc); with the mutex

  // So that publish() allocates nothing on the host.
  void reserve_tables();
  // A table of the copies that are ready now becomes the newest; the old one is retired.
  // On an error the old one stays.
  Status publish(StoreLayer& layer);
  Status publish_all();
  void write(StoreLayer& layer, const std::shared_ptr<const LayerVersions>& versions,
             Serving& serving);
  void recycle(std::unique_ptr<ExpertTable> table);

  FifoGate gate;  // one move at a time is planned and made
  Move move;      // of whoever is inside the gate

  // With the mutex.
  std::vector<std::unique_ptr<ExpertTable>> retired;
  uint64_t epoch = 0;
  bool loading_started = false, quiet_started = false;
  int loads_in_flight = 0;

  Loader loader;        // its threads use everything above
  Loader quiet_loader;  // ditto; forwards' threads come first
};

}  // namespace moe
