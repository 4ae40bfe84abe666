// On which cores threads run. Linux; what the system refuses is ignored: a thread then stays where
// the scheduler puts it.
#pragma once

#include <cstdint>

#include <pthread.h>
#include <sched.h>

namespace moe {

// The cores that this process might use when the object was made.
class Cores {
 public:
  Cores();

  int count() const { return CPU_COUNT(&set_); }  // at least 1
  // Moves the calling thread off `core`, and keeps it off, if there is another one.
  void avoid(int core) const;

 private:
  cpu_set_t set_;
};

int current_core();  // -1 if the system does not say

// Moves `thread` to `core`, where it stays until it calls Cores::avoid().
void confine(pthread_t thread, int core);

// CPU time of a living thread in ns. It stands still while the thread waits for a core.
int64_t cpu_time_ns(pthread_t thread);

}  // namespace moe
