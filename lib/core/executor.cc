// The library's own Executor. Each run() puts a job on a list and works on it; sleeping or spinning
// workers join the jobs that have unclaimed pieces. Pieces are claimed by an atomic counter, so a
// worker that the system takes off its core delays one piece, not a share of the job.
//
// On a machine that others use too, the scheduler's own choices would halve the speed of two
// threads beside one busy process. So
//   - a worker that finds itself on its caller's core leaves it, though the other core be busy:
//   else
//     the scheduler, which sees one thread too many on either core, leaves both of ours on one;
//   - a caller that has nothing left to claim brings a worker that lost its core in the middle of a
//     piece to its own core, rather than wait for the end of the other process's time slice.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/cores.h"
#include "core/error.h"
#include "moe/host.h"

namespace moe {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kSpin(50);    // more than the gap between two jobs of a forward
constexpr std::chrono::microseconds kSample(20);  // in which a thread that has a core uses it
constexpr std::chrono::microseconds kRetire(500);  // until a caller looks after its helpers again
constexpr int kMaxThreads = 4096;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
bool spin_until(std::chrono::microseconds limit, Condition condition) {
  const Clock::time_point end = Clock::now() + limit;
  do {
    for (int i = 0; i < 16; ++i) {
      if (condition()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return false;
}

// One run() in progress; lives on its caller's stack. `helpers` and the list change under the
// pool's mutex, and a helper's last touch is the decrement.
struct Job {
  Executor::Task task;
  void* argument;
  int64_t tasks;
  int core;  // the caller's when it began; -1: unknown
  Job* next_job = nullptr;
  std::atomic<int> helpers{0};
  alignas(64) std::atomic<int64_t> next{0};

  bool unclaimed() const { return next.load(std::memory_order_relaxed) < tasks; }
  void work(int worker) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      task(argument, i, worker);
  }
};

// A worker, as others see it. Guarded by the pool's mutex.
struct Member {
  Job* job = nullptr;     // that it works on
  bool confined = false;  // brought to a caller's core
  int64_t cpu_ns = 0;     // CPU time at the last look
};

class ThreadPool final : public Executor {
 public:
  // Throws std::system_error or std::bad_alloc when a thread cannot start.
  ThreadPool(const Cores& cores, int threads) : cores_(cores), members_(threads) {
    try {
      for (int worker = 1; worker < threads; ++worker)
        threads_.emplace_back([this, worker] { serve(worker); });
    } catch (...) {
      stop();
      throw;
    }
    concurrency_ = threads;
  }
  ~ThreadPool() override { stop(); }

  int concurrency() const noexcept override { return concurrency_; }

  void run(int64_t tasks, Task task, void* argument) noexcept override {
    Job job{task, argument, tasks, current_core()};
    const bool shared = tasks > 1 && concurrency_ > 1;
    if (shared) publish(job);
    job.work(0);
    if (shared) retire(job);
  }

 private:
  void publish(Job& job) {
    int to_wake;
    {
      std::lock_guard lock(mutex_);
      job.next_job = jobs_;
      jobs_ = &job;
      generation_.fetch_add(1, std::memory_order_release);
      to_wake = sleeping_;
    }
    if (to_wake == 0) return;
    if (job.tasks - 1 >= to_wake) return work_.notify_all();
    for (int64_t i = 1; i < job.tasks; ++i) work_.notify_one();
  }

  // Takes the job off the list and waits for those who still hold pieces of it.
  void retire(Job& job) {
    {
      std::lock_guard lock(mutex_);
      Job** link = &jobs_;
      while (*link != &job) link = &(*link)->next_job;
      *link = job.next_job;
    }
    const auto done = [&] { return job.helpers.load(std::memory_order_acquire) == 0; };
    while (!spin_until(kSpin, done)) {
      look_after(job,
                 [](Member& member, pthread_t thread) { member.cpu_ns = cpu_time_ns(thread); });
      if (spin_until(kSample, done)) return;
      look_after(job, [](Member& member, pthread_t thread) {
        if (cpu_time_ns(thread) != member.cpu_ns) return;
        confine(thread, current_core());
        member.confined = true;
      });
      std::unique_lock lock(mutex_);
      if (done_.wait_for(lock, kRetire, done)) return;
    }
  }

  // look(member, thread) for each worker that works on `job`.
  template <class Look>
  void look_after(const Job& job, Look look) {
    std::lock_guard lock(mutex_);
    for (size_t worker = 1; worker < members_.size(); ++worker)
      if (members_[worker].job == &job)
        look(members_[worker], threads_[worker - 1].native_handle());
  }

  void serve(int worker) {
    Member& self = members_[static_cast<size_t>(worker)];
    while (Job* job = join_job(self)) {
      keep_off(job->core, false);
      job->work(worker);
      const int core = job->core;  // the job is gone once it has no helpers
      bool confined;
      {
        std::lock_guard lock(mutex_);
        self.job = nullptr;
        confined = std::exchange(self.confined, false);
        if (job->helpers.fetch_sub(1, std::memory_order_release) == 1) done_.notify_all();
      }
      if (confined) keep_off(core, true);
    }
  }

  // The caller works on `core`.
  void keep_off(int core, bool confined) const {
    if (confined || (cores_.count() > 1 && core >= 0 && current_core() == core)) cores_.avoid(core);
  }

  // The next job with unclaimed pieces; null when the pool stops.
  Job* join_job(Member& self) {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      for (Job* job = jobs_; job; job = job->next_job) {
        if (!job->unclaimed()) continue;
        job->helpers.fetch_add(1, std::memory_order_relaxed);
        return self.job = job;
      }
      const uint64_t seen = generation_.load(std::memory_order_relaxed);
      const auto news = [&] { return generation_.load(std::memory_order_acquire) != seen; };
      lock.unlock();
      const bool found = spin_until(kSpin, news);
      lock.lock();
      if (found) continue;
      ++sleeping_;
      work_.wait(lock, news);
      --sleeping_;
    }
    return nullptr;
  }

  void stop() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  const Cores cores_;
  std::mutex mutex_;
  std::condition_variable work_, done_;
  Job* jobs_ = nullptr;  // newest first
  int sleeping_ = 0;
  bool stopping_ = false;
  std::atomic<uint64_t> generation_{0};  // counts what a worker may have to look at
  int concurrency_ = 1;
  std::vector<Member> members_;       // by worker; the caller's, 0, is unused
  std::vector<std::thread> threads_;  // worker w is threads_[w - 1]
};

}  // namespace

Result<std::unique_ptr<Executor>> make_executor(int threads) {
  if (threads < 0 || threads > kMaxThreads)
    return invalid_argument({}, "threads is {}; wanted 0 (one per usable core) to {}", threads,
                            kMaxThreads);
  const Cores cores;
  if (threads == 0) threads = cores.count();
  return guarded({}, [&]() -> Result<std::unique_ptr<Executor>> {
    try {
      return std::unique_ptr<Executor>(std::make_unique<ThreadPool>(cores, threads));
    } catch (const std::system_error& e) {
      return error(StatusCode::resource_exhausted, {}, "cannot start {} threads: {}", threads,
                   e.what());
    }
  });
}

}  // namespace moe
