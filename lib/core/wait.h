// Waiting on a condition with a deadline on the host's clock, which tests may move by hand.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "moe/host.h"

namespace moe {

// True once `ready()` holds (checked under `lock`); false when `clock` passes `end_ns` before.
template <class Ready>
bool wait_until(std::condition_variable& news, std::unique_lock<std::mutex>& lock,
                const Clock& clock, int64_t end_ns, Ready ready) {
  constexpr int64_t kSliceNs = 10'000'000;
  while (!ready()) {
    const int64_t left = end_ns - clock.now_ns();
    if (left <= 0) return false;
    news.wait_for(lock, std::chrono::nanoseconds(std::min(left, kSliceNs)));
  }
  return true;
}

}  // namespace moe
