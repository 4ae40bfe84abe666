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

#include "moe/expert_store.h"
#include "moe/host.h"
#include "moe/status.h"

namespace moe {

// Safe for concurrent use. Destroying it finishes the jobs that have begun and drops the others.
class Loader {
 public:
  ~Loader();

  // Starts the threads, as nice(1) as that; resource_exhausted if the system has none.
  Status start(int threads, const Clock& clock, const char* name = "loader", int niceness = 0);

  // Runs `job` on some thread, first come, first served. Jobs do not throw.
  void submit(std::function<void()> job);

  // A thread gives a sign of life when it takes a job and when it has done one.
  std::vector<Heartbeat> heartbeats(const Clock& clock) const;

 private:
  struct Beat {
    bool busy = false;
    int64_t at_ns = 0;
    int64_t jobs = 0;
  };
  void serve(size_t thread);

  mutable std::mutex mutex_;
  const Clock* clock_ = nullptr;
  const char* name_ = "";
  int niceness_ = 0;
  std::vector<Beat> beats_;  // by thread
  std::condition_variable work_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace moe
