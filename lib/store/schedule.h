// Where threads of a store meet: tests put a scheduler of their own there and choose who goes next.
#pragma once

#include <functional>

namespace moe {

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
};

}  // namespace moe
