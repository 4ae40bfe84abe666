#include "store/epoch.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "core/error.h"

namespace moe {

void EpochReaders::add(EpochReader* reader) {
  std::lock_guard lock(mutex_);
  readers_.push_back({reader, 0});
}

void EpochReaders::remove(EpochReader* reader) {
  std::lock_guard lock(mutex_);
  std::erase_if(readers_, [&](const Seen& seen) { return seen.reader == reader; });
}

size_t EpochReaders::still_inside() const {
  std::lock_guard lock(mutex_);  // a reader that is gone has left every epoch
  return static_cast<size_t>(std::count_if(readers_.begin(), readers_.end(), [](const Seen& seen) {
    return seen.reader->exited.load(std::memory_order_acquire) < seen.entered;
  }));
}

Status EpochReaders::wait_for_grace(const Clock& clock, int64_t end_ns, Schedule* schedule) {
  if (schedule) schedule->point("grace");
  {
    std::lock_guard lock(mutex_);
    for (Seen& seen : readers_) seen.entered = seen.reader->entered.load(std::memory_order_seq_cst);
  }
  if (schedule)
    schedule->wait("grace", [&] { return still_inside() == 0 || clock.now_ns() > end_ns; });
  for (int spins = 0;; ++spins) {
    const size_t inside = still_inside();
    if (inside == 0) return {};
    if (clock.now_ns() > end_ns)
      return error(StatusCode::deadline_exceeded, {.phase = Phase::publish},
                   "{} reader(s) still use an older table", inside);
    if (spins < 64)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

}  // namespace moe
