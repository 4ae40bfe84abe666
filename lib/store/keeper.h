// A thread that does one thing now and then.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "moe/expert_store.h"
#include "moe/host.h"
#include "moe/status.h"

namespace moe {

// Safe for concurrent use. Destroying it ends the job that has begun.
class Keeper {
 public:
  ~Keeper();

  // Calls `job` every `interval_ns`, which it does not count by `clock`: that may stand still.
  // resource_exhausted if the system has no thread. Jobs do not throw.
  Status start(std::string name, int64_t interval_ns, const Clock& clock,
               std::function<void()> job);

  bool started() const { return thread_.joinable(); }
  Heartbeat heartbeat(const Clock& clock) const;

 private:
  void run(int64_t interval_ns, const Clock& clock, const std::function<void()>& job);

  mutable std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  Heartbeat beat_;
  int64_t at_ns_ = 0;  // of the last sign of life
  std::thread thread_;
};

}  // namespace moe
