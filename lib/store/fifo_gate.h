// Lets one caller through at a time, in the order of arrival.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <set>

#include "core/wait.h"
#include "moe/status.h"
#include "store/schedule.h"

namespace moe {

class FifoGate {
 public:
  // Inside the gate while it lives, if entered().
  class Turn {
   public:
    // Not entered if `clock` passes `end_ns` before it is this caller's turn.
    Turn(FifoGate& gate, const Clock& clock, int64_t end_ns, Schedule* schedule)
        : gate_(gate), entered_(gate.enter(clock, end_ns, schedule)) {}
    ~Turn() {
      if (entered_) gate_.leave();
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    bool entered() const { return entered_; }
    // ok, or deadline_exceeded.
    Status status() const {
      if (entered_) return {};
      return Status(StatusCode::deadline_exceeded, "the deadline passed before this call's turn");
    }

   private:
    FifoGate& gate_;
    bool entered_;
  };

  bool enter(const Clock& clock, int64_t end_ns, Schedule* schedule = nullptr) {
    if (schedule) schedule->point("gate");
    std::unique_lock lock(mutex_);
    const uint64_t ticket = next_++;
    queue_.insert(ticket);
    const auto mine = [&] { return *queue_.begin() == ticket; };
    if (schedule) {
      lock.unlock();
      schedule->wait("gate", [&] { return mine() || clock.now_ns() >= end_ns; });
      lock.lock();
    }
    if (wait_until(turn_, lock, clock, end_ns, mine)) return true;
    queue_.erase(ticket);
    turn_.notify_all();
    return false;
  }
  // How many are inside or wait.
  size_t callers() const {
    std::lock_guard lock(mutex_);
    return queue_.size();
  }
  void leave() {
    {
      std::lock_guard lock(mutex_);
      queue_.erase(queue_.begin());
    }
    turn_.notify_all();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable turn_;
  std::set<uint64_t> queue_;  // the first is inside
  uint64_t next_ = 0;
};

}  // namespace moe
