// A few threads that fill slots in the background, so that reads overlap and a wait for them can
// have a deadline.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "moe/status.h"

namespace moe {

// Safe for concurrent use. Destroying it finishes the jobs that have begun and drops the others.
class Loader {
 public:
  ~Loader();

  // Starts the threads; resource_exhausted if the system has none.
  Status start(int threads);

  // Runs `job` on some thread, first come, first served. Jobs do not throw.
  void submit(std::function<void()> job);

 private:
  void serve();

  std::mutex mutex_;
  std::condition_variable work_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace moe
