// The library's own Executor. Each run() puts a job on a list and works on it; sleeping or spinning
// workers join the jobs that have unclaimed pieces. Pieces are claimed by an atomic counter, so a
// worker that the system takes off its core delays one piece, not a share of the job.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include <sched.h>

#include "core/error.h"
#include "moe/host.h"

namespace moe {
namespace {

constexpr int kSpins = 2000;  // some 30 us: longer than the gap between two jobs of one forward
constexpr int kMaxThreads = 4096;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
bool spin_until(Condition condition) {
  for (int i = 0; i < kSpins; ++i) {
    if (condition()) return true;
    pause();
  }
  return false;
}

// One run() in progress; lives on its caller's stack. `helpers` and the list change under the
// pool's mutex, and a helper's last touch is the decrement.
struct Job {
  Executor::Task task;
  void* argument;
  int64_t tasks;
  Job* next_job = nullptr;
  std::atomic<int> helpers{0};
  alignas(64) std::atomic<int64_t> next{0};

  bool unclaimed() const { return next.load(std::memory_order_relaxed) < tasks; }
  void work(int worker) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      task(argument, i, worker);
  }
};

class ThreadPool final : public Executor {
 public:
  // Throws std::system_error or std::bad_alloc when a thread cannot start.
  explicit ThreadPool(int threads) {
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
    Job job{task, argument, tasks};
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
    if (spin_until(done)) return;
    std::unique_lock lock(mutex_);
    done_.wait(lock, done);
  }

  void serve(int worker) {
    while (Job* job = join_job()) {
      job->work(worker);
      std::lock_guard lock(mutex_);
      if (job->helpers.fetch_sub(1, std::memory_order_release) == 1) done_.notify_all();
    }
  }

  // The next job with unclaimed pieces; null when the pool stops.
  Job* join_job() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      for (Job* job = jobs_; job; job = job->next_job) {
        if (!job->unclaimed()) continue;
        job->helpers.fetch_add(1, std::memory_order_relaxed);
        return job;
      }
      const uint64_t seen = generation_.load(std::memory_order_relaxed);
      const auto news = [&] { return generation_.load(std::memory_order_acquire) != seen; };
      lock.unlock();
      const bool found = spin_until(news);
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

  std::mutex mutex_;
  std::condition_variable work_, done_;
  Job* jobs_ = nullptr;  // newest first
  int sleeping_ = 0;
  bool stopping_ = false;
  std::atomic<uint64_t> generation_{0};  // counts what a worker may have to look at
  int concurrency_ = 1;
  std::vector<std::thread> threads_;
};

int usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

Result<std::unique_ptr<Executor>> make_executor(int threads) {
  if (threads < 0 || threads > kMaxThreads)
    return invalid_argument({}, "threads is {}; wanted 0 (one per usable core) to {}", threads,
                            kMaxThreads);
  if (threads == 0) threads = usable_cores();
  return guarded({}, [&]() -> Result<std::unique_ptr<Executor>> {
    try {
      return std::unique_ptr<Executor>(std::make_unique<ThreadPool>(threads));
    } catch (const std::system_error& e) {
      return error(StatusCode::resource_exhausted, {}, "cannot start {} threads: {}", threads,
                   e.what());
    }
  });
}

}  // namespace moe
