#include "store/epoch.h"

#include <array>
#include <memory>
#include <thread>
#include <vector>

#include "catch.h"
#include "core/services.h"

using namespace moe;

namespace {
int64_t in(int64_t nanoseconds) { return default_clock().now_ns() + nanoseconds; }
}  // namespace

TEST_CASE("grace waits for readers that are inside, and for no others", "[store][mission-137]") {
  EpochReaders readers;
  EpochReader a, b;
  readers.add(&a);
  readers.add(&b);
  CHECK(readers.wait_for_grace(default_clock(), in(0)).ok());
  a.enter();
  const Status late = readers.wait_for_grace(default_clock(), in(1'000'000));
  CHECK(late.code() == StatusCode::deadline_exceeded);
  CHECK(late.message().find("1 reader") != std::string_view::npos);
  a.exit();
  CHECK(readers.wait_for_grace(default_clock(), in(0)).ok());
  readers.remove(&b);
  b.enter();
  CHECK(readers.wait_for_grace(default_clock(), in(0)).ok());
}

TEST_CASE("a reader that keeps re-entering does not hold up grace", "[store]") {
  EpochReaders readers;
  EpochReader reader;
  readers.add(&reader);
  std::atomic<bool> stop{false};
  std::thread thread([&] {
    while (!stop) EpochPin pin(reader);
  });
  for (int i = 0; i < 100; ++i)
    CHECK(readers.wait_for_grace(default_clock(), in(5'000'000'000)).ok());
  stop = true;
  thread.join();
}

// The protocol itself: what a reader saw inside a pin is never recycled under it.
TEST_CASE("no table is recycled while a pinned reader uses it", "[store][mission-137]") {
  struct Table {
    std::array<std::atomic<int>, 8> values{};
  };
  std::array<Table, 2> tables;
  std::atomic<Table*> current{&tables[0]};
  EpochReaders readers;
  constexpr int kReaders = 3, kRounds = 2000;
  std::array<EpochReader, kReaders> reader;
  for (EpochReader& r : reader) readers.add(&r);
  std::atomic<bool> stop{false};
  std::atomic<int64_t> torn{0}, reads{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kReaders; ++i)
    threads.emplace_back([&, i] {
      while (!stop) {
        EpochPin pin(reader[i]);
        Table* table = current.load(std::memory_order_seq_cst);
        const int first = table->values[0].load(std::memory_order_relaxed);
        for (auto& value : table->values) torn += value.load(std::memory_order_relaxed) != first;
        ++reads;
      }
    });
  while (reads == 0) std::this_thread::yield();
  const int64_t end = in(2'000'000'000);  // on a loaded machine every round waits for a core
  for (int round = 1; round <= kRounds && default_clock().now_ns() < end; ++round) {
    Table* spare = current.load() == &tables[0] ? &tables[1] : &tables[0];
    for (auto& value : spare->values) value.store(round, std::memory_order_relaxed);
    current.store(spare, std::memory_order_seq_cst);
    REQUIRE(readers.wait_for_grace(default_clock(), in(60'000'000'000)).ok());
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(torn == 0);
}
