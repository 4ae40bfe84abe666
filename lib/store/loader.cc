#include "store/loader.h"

#include <system_error>
#include <utility>

#include "core/error.h"

namespace moe {

Status Loader::start(int threads) {
  try {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { serve(); });
    return {};
  } catch (const std::system_error& e) {
    return error(StatusCode::resource_exhausted, {}, "cannot start {} loader threads: {}", threads,
                 e.what());
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

void Loader::serve() {
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    lock.lock();
  }
}

}  // namespace moe
