// Lets one caller through at a time, in the order of arrival.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>

#include "core/wait.h"

namespace moe {

class FifoGate {
 public:
  // False if `clock` passes `end_ns` before it is this caller's turn.
  bool enter(const Clock& clock, int64_t end_ns) {
    std::unique_lock lock(mutex_);
    const uint64_t ticket = next_++;
    queue_.push_back(ticket);
    if (wait_until(turn_, lock, clock, end_ns, [&] { return queue_.front() == ticket; }))
      return true;
    std::erase(queue_, ticket);
    turn_.notify_all();
    return false;
  }
  void leave() {
    {
      std::lock_guard lock(mutex_);
      queue_.pop_front();
    }
    turn_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable turn_;
  std::deque<uint64_t> queue_;  // the front is inside
  uint64_t next_ = 0;
};

}  // namespace moe
