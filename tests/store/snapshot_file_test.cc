// Snapshot files: equal when read back, old or new after any failure or crash, refused when
// damaged.
#include "store/snapshot_file.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include <sys/wait.h>
#include <unistd.h>

#include "catch.h"
#include "failing_calls.h"
#include "temporary_directory.h"

using namespace moe;
using moe::test::FailingCalls;
using moe::test::TemporaryDirectory;

namespace {

using Rng = std::mt19937_64;

StoreSnapshot::Table random_table(Rng& rng) {
  StoreSnapshot::Table table{1 + static_cast<uint32_t>(rng() % 3), rng(), {}};
  for (int e = 0; e < 8; ++e) table.experts.push_back(1 + static_cast<uint32_t>(rng() % 3));
  return table;
}

StoreSnapshot random_snapshot(Rng& rng) {
  StoreSnapshot snapshot;
  for (uint32_t v = 1; v <= 3; ++v) snapshot.versions.push_back({v, "a \"model\"\n\xc3\xa9"});
  snapshot.newest = 3 + static_cast<uint32_t>(rng() % 9);
  snapshot.share = static_cast<double>(rng() % 100) / 99;
  std::normal_distribution<double> normal(0, 1e9);
  for (int32_t layer = 0; layer < 3; ++layer) {
    StoreSnapshot::Layer& made = snapshot.layers.emplace_back();
    made = {2 * layer, "rows of 16", 4096, {}, random_table(rng), {}, {}};
    if (rng() % 2) made.candidate = random_table(rng);
    if (rng() % 2) made.previous = random_table(rng);
    for (int e = 0; e < 8; ++e) made.uses.push_back(static_cast<int64_t>(rng() >> 1));
    for (int32_t e = -1; e < 8; e += 1 + static_cast<int32_t>(rng() % 3))
      snapshot.experts.push_back(
          {{2 * layer, e}, 1 + static_cast<uint32_t>(rng() % 9), rng(), rng() % 2 == 0});
  }
  StoreSnapshot::Policy policy{"lfu", {0, 2, 4}, {}};
  for (const char* name : {"now", "uses", "0/score"}) {
    auto& part = policy.memory.parts.emplace_back(PolicyMemory::Part{name, {}});
    for (size_t i = rng() % 20; i > 0; --i)
      part.values.push_back(rng() % 2 ? normal(rng) : static_cast<double>(rng() >> 11));
  }
  snapshot.policies.push_back(policy);
  return snapshot;
}

std::string bytes_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void write_bytes(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

int files_in(const std::string& folder) {
  return static_cast<int>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

}  // namespace

TEST_CASE("a snapshot is read as it was written", "[store][mission-108]") {
  Rng rng(test::seed());
  const TemporaryDirectory folder;
  for (int i = 0; i < 50; ++i) {
    const StoreSnapshot snapshot = random_snapshot(rng);
    REQUIRE(write_snapshot(snapshot, folder / "s").ok());
    const auto read = read_snapshot(folder / "s");
    INFO(read.status().message());
    REQUIRE(read.ok());
    CHECK(*read == snapshot);
  }
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("the n-th write, sync or rename fails: the old snapshot stays, or the new one is there",
          "[store][mission-108][mission-93]") {
  Rng rng(test::seed());
  const TemporaryDirectory folder;
  const StoreSnapshot old = random_snapshot(rng), next = random_snapshot(rng);
  int failed = 0;
  for (int nth = 1;; ++nth) {
    REQUIRE(write_snapshot(old, folder / "s").ok());
    FailingCalls calls(nth);
    const Status status = write_snapshot(next, folder / "s", &calls);
    CAPTURE(nth, status.message());
    CHECK(files_in(folder.path()) == 1);  // no rest of the failed one
    const auto read = read_snapshot(folder / "s");
    REQUIRE(read.ok());
    if (!calls.reached()) {
      CHECK(status.ok());
      CHECK(*read == next);
      break;
    }
    ++failed;
    CHECK((status.code() == StatusCode::resource_exhausted ||
           status.code() == StatusCode::unavailable));
    CHECK(status.place().file.starts_with(folder.path()));
    CHECK((*read == old || *read == next));  // new: only the directory's sync failed
  }
  CHECK(failed > 8);
}

TEST_CASE("a crash at the n-th write, sync or rename leaves the old snapshot or the new one",
          "[store][mission-108]") {
  Rng rng(test::seed());
  const TemporaryDirectory folder;
  const StoreSnapshot old = random_snapshot(rng), next = random_snapshot(rng);
  int crashed = 0, seen_old = 0, seen_new = 0;
  for (const bool after_rename : {false, true})
    for (int nth = 1;; ++nth) {
      REQUIRE(write_snapshot(old, folder / "s").ok());
      const pid_t child = ::fork();
      REQUIRE(child >= 0);
      if (child == 0) {
        FailingCalls calls(nth, [] { ::_exit(42); });
        if (after_rename) calls.crash_after_rename();
        ::_exit(write_snapshot(next, folder / "s", &calls).ok() ? 0 : 1);
      }
      int state = 0;
      REQUIRE(::waitpid(child, &state, 0) == child);
      REQUIRE(WIFEXITED(state));
      CAPTURE(nth, after_rename);
      const auto read = read_snapshot(folder / "s");
      REQUIRE(read.ok());
      if (WEXITSTATUS(state) == 0) {
        CHECK(*read == next);
        break;
      }
      REQUIRE(WEXITSTATUS(state) == 42);
      ++crashed;
      CHECK((*read == old || *read == next));
      ++(*read == old ? seen_old : seen_new);
    }
  CHECK(crashed > 16);
  CHECK(seen_old > 0);
  CHECK(seen_new > 0);
  // What crashes left behind is in nobody's way.
  REQUIRE(write_snapshot(old, folder / "s").ok());
  CHECK(*read_snapshot(folder / "s") == old);
}

TEST_CASE("a snapshot that was cut, damaged or is none is refused, with what it is",
          "[store][mission-108][mission-93]") {
  Rng rng(test::seed());
  const TemporaryDirectory folder;
  const std::string path = folder / "s";
  REQUIRE(write_snapshot(random_snapshot(rng), path).ok());
  const std::string whole = bytes_of(path);
  const auto code_of = [&](std::string_view bytes) {
    write_bytes(path, bytes);
    const Status status = read_snapshot(path).status();
    CHECK((status.ok() || status.place().file == path));
    return status.code();
  };
  for (size_t size = 0; size < whole.size(); size += size < 40 ? 1 : 7) {
    CAPTURE(size);
    const StatusCode code = code_of(std::string_view(whole).substr(0, size));
    CHECK(code == (size < 21 ? StatusCode::invalid_argument : StatusCode::data_loss));
  }
  for (int i = 0; i < 500; ++i) {
    std::string flipped = whole;
    const size_t at = 23 + rng() % (whole.size() - 23);
    flipped[at] = static_cast<char>(flipped[at] ^ (1 << rng() % 8));
    CAPTURE(at);
    // The digest's own digits may change case.
    if (const StatusCode code = code_of(flipped); code != StatusCode::ok)
      CHECK(code == StatusCode::data_loss);
    else
      CHECK(at > whole.size() - 20);
  }
  CHECK(code_of("{}") == StatusCode::invalid_argument);
  CHECK(code_of("seq,step,layer\n") == StatusCode::invalid_argument);
  std::string later = whole;
  later.replace(later.find("moe-store-1"), 11, "moe-store-2");
  CHECK(code_of(later) == StatusCode::unimplemented);
  std::filesystem::remove(path);
  CHECK(read_snapshot(path).status().code() == StatusCode::not_found);
}
