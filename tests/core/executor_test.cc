#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include <pthread.h>
#include <sched.h>

#include "catch.h"
#include "moe/host.h"

using namespace moe;

namespace {

// Counts every index, and notices two pieces of one job on one worker at once.
struct Probe {
  explicit Probe(int64_t tasks, int workers) : hits(tasks), busy(workers) {}
  std::vector<int> hits;  // not atomic: tsan proves that pieces and caller are ordered
  std::vector<std::atomic<bool>> busy;
  std::atomic<int> clashes{0}, out_of_range{0};

  static void piece(void* argument, int64_t index, int worker) {
    auto& probe = *static_cast<Probe*>(argument);
    if (worker < 0 || worker >= static_cast<int>(probe.busy.size())) {
      ++probe.out_of_range;
      return;
    }
    probe.clashes += probe.busy[worker].exchange(true);
    ++probe.hits[index];
    probe.busy[worker] = false;
  }
  bool clean() const {
    for (int count : hits)
      if (count != 1) return false;
    return clashes == 0 && out_of_range == 0;
  }
};

std::unique_ptr<Executor> executor(int threads) {
  auto made = make_executor(threads);
  REQUIRE(made.ok());
  return *std::move(made);
}

}  // namespace

TEST_CASE("every piece runs once, on a worker of its own", "[executor]") {
  for (int threads : {1, 2, 3, 8}) {
    const auto pool = executor(threads);
    CHECK(pool->concurrency() == threads);
    for (int64_t tasks : {0, 1, 2, 7, 1000}) {
      Probe probe(tasks, threads);
      pool->run(tasks, Probe::piece, &probe);
      CHECK(probe.clean());
    }
  }
}

TEST_CASE("several callers share one executor", "[executor]") {
  const auto pool = executor(3);
  std::atomic<int> bad{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 200; ++round) {
        Probe probe(caller * 13 + round % 5, 3);
        pool->run(static_cast<int64_t>(probe.hits.size()), Probe::piece, &probe);
        bad += !probe.clean();
      }
    });
  for (auto& caller : callers) caller.join();
  CHECK(bad == 0);
}

TEST_CASE("workers wake from sleep, and an executor can be destroyed awake or asleep",
          "[executor]") {
  for (int sleep_ms : {0, 5}) {
    auto pool = executor(2);
    for (int round = 0; round < 3; ++round) {
      std::this_thread::sleep_for(std::chrono::milliseconds(sleep_ms));
      Probe probe(50, 2);
      pool->run(50, Probe::piece, &probe);
      CHECK(probe.clean());
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(sleep_ms));
    pool.reset();
  }
}

TEST_CASE("pieces of one job do run at once", "[executor]") {
  // Each piece waits for the other: on one thread this would hang, so both workers took part.
  const auto pool = executor(2);
  std::atomic<int> arrived{0};
  pool->run(
      2,
      [](void* argument, int64_t, int) {
        auto& count = *static_cast<std::atomic<int>*>(argument);
        ++count;
        while (count < 2) std::this_thread::yield();
      },
      &arrived);
  CHECK(arrived == 2);
}

TEST_CASE(
    "pieces end though another thread keeps a core busy, and workers keep the process's cores",
    "[executor]") {
  cpu_set_t before;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  std::atomic<bool> stop{false};
  std::thread hog([&] {  // on one core
    int core = 0;
    while (!CPU_ISSET(core, &before)) ++core;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    while (!stop) {
    }
  });
  const auto pool = executor(2);
  std::atomic<int> outside{0};
  struct Context {
    const cpu_set_t& allowed;
    std::atomic<int>& outside;
  } context{before, outside};
  for (int round = 0; round < 20; ++round) {
    Probe probe(64, 2);
    pool->run(64, Probe::piece, &probe);
    CHECK(probe.clean());
    pool->run(
        20,
        [](void* argument, int64_t, int) {
          const auto& c = *static_cast<Context*>(argument);
          const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
          while (std::chrono::steady_clock::now() < end) {
          }
          c.outside += !CPU_ISSET(sched_getcpu(), &c.allowed);
        },
        &context);
  }
  stop = true;
  hog.join();
  CHECK(outside == 0);
  cpu_set_t after;
  REQUIRE(sched_getaffinity(0, sizeof after, &after) == 0);
  CHECK(CPU_EQUAL(&before, &after));  // the caller's own affinity is its own affair
}

TEST_CASE("thread counts: 0 is one per usable core, nonsense is refused", "[executor]") {
  CHECK(executor(0)->concurrency() >= 1);
  const auto refused = make_executor(-3);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.status().code() == StatusCode::invalid_argument);
  CHECK(refused.status().message() == "threads is -3; wanted 0 (one per usable core) to 4096");
}
