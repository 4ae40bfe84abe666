// Many ranges at once: with a ring and without, past the page cache and through it, on good files
// and bad ones.
#include "core/batch_reader.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "catch.h"
#include "temporary_directory.h"

using namespace moe;

namespace {

std::unique_ptr<Ring> refuse_ring(unsigned) noexcept { return nullptr; }

// A ring whose reads go wrong by turns: interrupted, short, failed, at the end of the file.
class BadRing final : public Ring {
 public:
  void read(std::span<RingRead> reads) noexcept override {
    for (size_t i = 0; i < reads.size(); ++i) {
      RingRead& read = reads[i];
      std::memset(read.to, 0xee, read.bytes);
      const int64_t half = ::pread(read.descriptor, read.to, read.bytes / 8192 * 4096,
                                   static_cast<off_t>(read.offset));
      const int64_t outcome[] = {-EINTR, half, -EIO, 0, -EINVAL};
      read.got = outcome[i % 5];
    }
  }
};
std::unique_ptr<Ring> bad_ring(unsigned) noexcept { return std::make_unique<BadRing>(); }

// Passes everything on, but has no descriptor; the n-th read fails.
class NoDescriptor final : public File {
 public:
  explicit NoDescriptor(std::unique_ptr<File> file) : file_(std::move(file)) {}
  std::string_view path() const noexcept override { return file_->path(); }
  uint64_t size() const noexcept override { return file_->size(); }
  Status check_unchanged() const override { return file_->check_unchanged(); }
  int64_t pread(void* out, size_t bytes, uint64_t offset) const noexcept override {
    return --until_failure == 0 ? -EIO : file_->pread(out, bytes, offset);
  }
  mutable int until_failure = 0;

 private:
  std::unique_ptr<File> file_;
};

std::string random_bytes(size_t count, std::mt19937_64& random) {
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

struct Disk : test::TemporaryDirectory {
  // A file older than the tick of the clock, so that changes are seen.
  std::unique_ptr<File> file(const std::string& name, const std::string& bytes) {
    const std::string path = *this / name;
    std::ofstream(path, std::ios::binary) << bytes;
    std::filesystem::last_write_time(
        path, std::filesystem::last_write_time(path) - std::chrono::seconds(10));
    auto opened = open_file(path, FileMode::stay_open);
    REQUIRE(opened.ok());
    return std::move(*opened);
  }
};

}  // namespace

TEST_CASE("ranges are read as they are in the files, however they are read", "[core][mission-84]") {
  std::mt19937_64 random(test::seed());
  Disk disk;
  // The second ends in the middle of a block; the third is empty.
  const std::string bytes[] = {random_bytes(3 << 20, random), random_bytes(70001, random), ""};
  std::unique_ptr<File> files[3];
  for (int i = 0; i < 3; ++i) files[i] = disk.file(std::to_string(i), bytes[i]);
  for (const bool direct : {false, true})
    for (const auto ring : {make_ring, refuse_ring, bad_ring}) {
      BatchReader reader(direct, ring);
      for (int round = 0; round < 20; ++round) {
        std::vector<FileRange> ranges;
        std::vector<std::string_view> wanted;
        for (uint64_t n = random() % 9; n > 0; --n) {
          const size_t f = random() % 3;
          const uint64_t offset = random() % (bytes[f].size() + 1);
          const uint64_t count = random() % (bytes[f].size() - offset + 1);
          ranges.push_back({files[f].get(), offset, count, "t"});
          wanted.push_back(std::string_view(bytes[f]).substr(offset, count));
        }
        auto loan = reader.read(ranges);
        REQUIRE(loan.ok());
        for (size_t r = 0; r < ranges.size(); ++r)
          CHECK(std::memcmp(loan->data(r), wanted[r].data(), wanted[r].size()) == 0);
      }
    }
}

TEST_CASE("what cannot be read names its file and tensor, and may be tried again",
          "[core][mission-93]") {
  std::mt19937_64 random(test::seed());
  for (const bool direct : {false, true})
    for (const auto ring : {make_ring, refuse_ring}) {
      Disk disk;
      const std::string bytes = random_bytes(1 << 20, random);
      const auto good = disk.file("good", bytes), cut = disk.file("cut", bytes);
      std::filesystem::resize_file(disk / "cut", 300'000);
      BatchReader reader(direct, ring);
      const FileRange both[] = {{good.get(), 5, 1000, "a"}, {cut.get(), 299'000, 5000, "b"}};
      const Status status = reader.read(both).status();
      CHECK(status.code() == StatusCode::data_loss);
      CHECK(status.place().file == disk / "cut");
      CHECK(status.place().tensor == "b");

      NoDescriptor flaky(disk.file("flaky", bytes));
      const FileRange range{&flaky, 7, 100, "c"};
      flaky.until_failure = 1;
      CHECK(reader.read({&range, 1}).status().code() == StatusCode::unavailable);
      auto again = reader.read({&range, 1});
      REQUIRE(again.ok());
      CHECK(std::memcmp(again->data(0), bytes.data() + 7, 100) == 0);
    }
}

TEST_CASE("a file that is replaced while open is still the old one", "[core][mission-93]") {
  Disk disk;
  const auto old = disk.file("f", std::string(100'000, 'o'));
  disk.file("new", std::string(100'000, 'n'));
  std::filesystem::rename(disk / "new", disk / "f");
  BatchReader reader(true);
  const FileRange range{old.get(), 50'000, 10, "t"};
  auto loan = reader.read({&range, 1});
  REQUIRE(loan.ok());
  CHECK(std::memcmp(loan->data(0), "oooooooooo", 10) == 0);
}

TEST_CASE("after a fork, parent and child read what they asked for", "[core][mission-84]") {
  std::mt19937_64 random(test::seed());
  Disk disk;
  const std::string bytes = random_bytes(3'000'000, random);
  const auto file = disk.file("bytes", bytes);
  BatchReader reader(true);
  const auto right = [&](uint64_t offset) {
    const FileRange range{file.get(), offset, 1'000'000, "bytes"};
    const auto loan = reader.read({&range, 1});
    return loan.ok() && std::memcmp(loan->data(0), bytes.data() + offset, range.bytes) == 0;
  };
  REQUIRE(right(0));
  for (int round = 0; round < 5; ++round) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      for (uint64_t i = 0; i < 40; ++i)
        if (!right(i * 50'000)) ::_exit(1);
      ::_exit(0);
    }
    for (uint64_t i = 0; i < 40; ++i) CHECK(right(2'000'000 - i * 50'000));
    int state = 0;
    REQUIRE(::waitpid(child, &state, 0) == child);
    CHECK((WIFEXITED(state) && WEXITSTATUS(state) == 0));
  }
}

TEST_CASE("several threads read at once", "[core]") {
  std::mt19937_64 random(test::seed());
  Disk disk;
  const std::string bytes = random_bytes(2 << 20, random);
  const auto file = disk.file("f", bytes);
  BatchReader reader(true);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      std::mt19937_64 own(static_cast<uint64_t>(t));
      for (int i = 0; i < 20; ++i) {
        const uint64_t offset = own() % bytes.size();
        const FileRange range{file.get(), offset, bytes.size() - offset, "t"};
        auto loan = reader.read({&range, 1});
        wrong += !loan.ok() ||
                 std::memcmp(loan->data(0), bytes.data() + offset, bytes.size() - offset) != 0;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}
