#include "store/epoch.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "core/error.h"

namespace moe {

void EpochReaders::add(EpochReader* reader) {
  std::lock_guard lock(mutex_);
  readers_.push_back(reader);
}

void EpochReaders::remove(EpochReader* reader) {
  std::lock_guard lock(mutex_);
  std::erase(readers_, reader);
}

Status EpochReaders::wait_for_grace(const Clock& clock, int64_t end_ns) const {
  std::vector<std::pair<const EpochReader*, uint64_t>> inside;
  {
    std::lock_guard lock(mutex_);
    inside.reserve(readers_.size());
    for (const EpochReader* reader : readers_)
      inside.emplace_back(reader, reader->entered.load(std::memory_order_seq_cst));
  }
  for (int spins = 0;; ++spins) {
    {
      std::lock_guard lock(mutex_);  // a reader that is gone has left every epoch
      std::erase_if(inside, [&](const auto& seen) {
        const bool alive =
            std::find(readers_.begin(), readers_.end(), seen.first) != readers_.end();
        return !alive || seen.first->exited.load(std::memory_order_acquire) >= seen.second;
      });
    }
    if (inside.empty()) return {};
    if (clock.now_ns() > end_ns)
      return error(StatusCode::deadline_exceeded, {.phase = Phase::publish},
                   "{} reader(s) still use an older table", inside.size());
    if (spins < 64)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

}  // namespace moe
