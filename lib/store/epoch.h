// Who may still read an old table. A reader bumps its enter counter before it looks at a table and
// its exit counter when it is done; whoever replaced a table waits until every reader's exits have
// reached the enters seen after the replacement. The same two counters exist per context on a GPU,
// bumped by kernels, so that a captured graph takes part.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "moe/host.h"
#include "moe/status.h"
#include "store/schedule.h"

namespace moe {

// One per Context. Used by one thread at a time.
struct EpochReader {
  alignas(64) std::atomic<uint64_t> entered{0};
  std::atomic<uint64_t> exited{0};

  // Sequentially consistent with the publisher's store and its reads of `entered`: either the
  // publisher sees this enter and waits, or this reader sees the published table.
  void enter() { entered.fetch_add(1, std::memory_order_seq_cst); }
  void exit() { exited.store(entered.load(std::memory_order_relaxed), std::memory_order_release); }
};

// Safe for concurrent use.
class EpochReaders {
 public:
  void add(EpochReader* reader);
  void remove(EpochReader* reader);

  // Waits until no reader is inside an epoch that it had entered before this call.
  // deadline_exceeded (with the number of readers still inside) if `clock` passes `end_ns` before.
  // One caller at a time; allocates nothing.
  Status wait_for_grace(const Clock& clock, int64_t end_ns, Schedule* schedule = nullptr);

 private:
  struct Seen {
    EpochReader* reader;
    uint64_t entered;  // when the wait for grace began
  };
  size_t still_inside() const;

  mutable std::mutex mutex_;
  std::vector<Seen> readers_;
};

// Holds an epoch for the life of a wave.
class EpochPin {
 public:
  explicit EpochPin(EpochReader& reader, Schedule* schedule = nullptr)
      : reader_(reader), schedule_(schedule) {
    if (schedule_) schedule_->point("enter");
    reader_.enter();
    if (schedule_) schedule_->point("entered");
  }
  ~EpochPin() {
    if (schedule_) schedule_->point("exit");
    reader_.exit();
  }
  EpochPin(const EpochPin&) = delete;
  EpochPin& operator=(const EpochPin&) = delete;

 private:
  EpochReader& reader_;
  Schedule* schedule_;
};

}  // namespace moe
