// Where threads of a store meet: tests put a scheduler of their own there and choose who goes next.
#pragma once

#include <functional>

namespace moe {

// What makes the store safe.
enum class Rule {
  wait_for_readers,   // of epochs that name a slot, before it is reused
  wait_for_leases,    // of waves that compute with it, likewise
  wait_for_versions,  // that forwards hold, before their shared experts go
  verify,             // a copy before it is ready
};

// Null outside tests. No call is made with a lock held.
class Schedule {
 public:
  virtual ~Schedule() = default;
  // Another thread may come in between what was done and what comes next.
  virtual void point(const char* where) = 0;
  // Returns once ready() holds; it is pure, and called while no other thread runs.
  virtual void wait(const char* where, const std::function<bool()>& ready) = 0;
  // Runs `job` on a thread of its own.
  virtual void spawn(std::function<void()> job) = 0;
  // The bytes of a slot that is free now.
  virtual void freed(void* slot, size_t bytes) = 0;
  // Whether the store is to break one of its rules, so that a test can see that its checks notice.
  virtual bool breaks(Rule) const { return false; }
};

}  // namespace moe
