#include "store/loader.h"

#include <system_error>
#include <utility>

#include <sys/resource.h>

#include "core/error.h"

namespace moe {

Status Loader::start(int threads, const Clock& clock, const char* name, int niceness) {
  try {
    clock_ = &clock;
    name_ = name;
    niceness_ = niceness;
    {
      std::lock_guard lock(mutex_);
      beats_.assign(static_cast<size_t>(threads), {.at_ns = clock.now_ns()});
    }
    for (size_t i = 0; i < beats_.size(); ++i) threads_.emplace_back([this, i] { serve(i); });
    return {};
  } catch (const std::system_error& e) {
    return error(StatusCode::resource_exhausted, {}, "cannot start {} {} threads: {}", threads,
                 name, e.what());
  }
}

Loader::~Loader() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Loader::submit(std::function<void()> job) {
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  work_.notify_one();
}

void Loader::serve(size_t thread) {
  if (niceness_ > 0) (void)::setpriority(PRIO_PROCESS, 0, niceness_);  // of this thread
  std::unique_lock lock(mutex_);
  const auto beat = [&](bool busy) {
    Beat& mine = beats_[thread];
    mine.jobs += mine.busy;
    mine.busy = busy;
    mine.at_ns = clock_->now_ns();
  };
  while (true) {
    work_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    beat(true);
    lock.unlock();
    job();
    lock.lock();
    beat(false);
  }
}

std::vector<Heartbeat> Loader::heartbeats(const Clock& clock) const {
  std::vector<Heartbeat> all;
  const int64_t now = clock.now_ns();
  std::lock_guard lock(mutex_);
  for (const Beat& beat : beats_)
    all.push_back(
        {name_ + (" " + std::to_string(all.size())), beat.busy, now - beat.at_ns, beat.jobs});
  return all;
}

}  // namespace moe
