#include "store/keeper.h"

#include <chrono>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace moe {

Status Keeper::start(std::string name, int64_t interval_ns, const Clock& clock,
                     std::function<void()> job) {
  beat_.name = std::move(name);
  at_ns_ = clock.now_ns();
  try {
    thread_ = std::thread(
        [this, interval_ns, &clock, job = std::move(job)] { run(interval_ns, clock, job); });
    return {};
  } catch (const std::system_error& e) {
    return error(StatusCode::resource_exhausted, {}, "cannot start a thread to {}: {}", beat_.name,
                 e.what());
  }
}

Keeper::~Keeper() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Keeper::run(int64_t interval_ns, const Clock& clock, const std::function<void()>& job) {
  std::unique_lock lock(mutex_);
  const auto beat = [&](bool busy) {
    beat_.jobs += beat_.busy;
    beat_.busy = busy;
    at_ns_ = clock.now_ns();
  };
  while (!stop_.wait_for(lock, std::chrono::nanoseconds(interval_ns), [&] { return stopping_; })) {
    beat(true);
    lock.unlock();
    job();
    lock.lock();
    beat(false);
  }
}

Heartbeat Keeper::heartbeat(const Clock& clock) const {
  std::lock_guard lock(mutex_);
  Heartbeat now = beat_;
  now.silent_ns = clock.now_ns() - at_ns_;
  return now;
}

}  // namespace moe
