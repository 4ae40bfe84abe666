#include "core/cores.h"

#include <algorithm>
#include <ctime>
#include <thread>

namespace moe {

Cores::Cores() {
  if (sched_getaffinity(0, sizeof set_, &set_) == 0 && CPU_COUNT(&set_) > 0) return;
  CPU_ZERO(&set_);
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  for (int core = 0; core < std::min(cores, CPU_SETSIZE); ++core) CPU_SET(core, &set_);
}

void Cores::avoid(int core) const {
  cpu_set_t others = set_;
  if (core >= 0 && core < CPU_SETSIZE) CPU_CLR(core, &others);
  const cpu_set_t& wanted = CPU_COUNT(&others) > 0 ? others : set_;
  pthread_setaffinity_np(pthread_self(), sizeof wanted, &wanted);
}

int current_core() { return sched_getcpu(); }

void confine(pthread_t thread, int core) {
  if (core < 0 || core >= CPU_SETSIZE) return;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  pthread_setaffinity_np(thread, sizeof one, &one);
}

int64_t cpu_time_ns(pthread_t thread) {
  clockid_t clock;
  timespec time{};
  if (pthread_getcpuclockid(thread, &clock) != 0 || clock_gettime(clock, &time) != 0) return 0;
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace moe
