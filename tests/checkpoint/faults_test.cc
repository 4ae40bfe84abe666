// Disks that fail, and files that others change while we use them.
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>

#include <sys/resource.h>
#include <sys/stat.h>

#include "catch.h"
#include "checkpoint/files.h"
#include "checkpoint/tensor_directory.h"

using namespace moe;
using namespace moe::test;
namespace fs = std::filesystem;

namespace {

enum class Fault { interrupted, short_read, io_error, early_end, cannot_open };

// Counts the calls of a kind, and lets the n-th fail: only it, or all from then on.
struct Plan {
  Fault fault;
  int nth;
  bool for_ever;
  int calls = 0;

  bool fails() {
    ++calls;
    return calls == nth || (for_ever && calls > nth);
  }
  bool reached() const { return calls >= nth; }
};

class FaultyFile final : public File {
 public:
  FaultyFile(std::unique_ptr<File> file, Plan* plan) : file_(std::move(file)), plan_(plan) {}

  std::string_view path() const noexcept override { return file_->path(); }
  uint64_t size() const noexcept override { return file_->size(); }
  Status check_unchanged() const override { return file_->check_unchanged(); }
  int64_t pread(void* out, size_t bytes, uint64_t offset) const noexcept override {
    if (plan_->fault == Fault::cannot_open || !plan_->fails())
      return file_->pread(out, bytes, offset);
    switch (plan_->fault) {
      case Fault::interrupted: return -EINTR;
      case Fault::short_read: return file_->pread(out, (bytes + 1) / 2, offset);
      case Fault::io_error: return -EIO;
      default: return 0;
    }
  }

 private:
  std::unique_ptr<File> file_;
  Plan* plan_;
};

OpenFile faulty(Plan* plan) {
  return [plan](const std::string& path, FileMode mode) -> Result<std::unique_ptr<File>> {
    if (plan->fault == Fault::cannot_open && plan->fails())
      return errno_status(EMFILE, "open", path);
    auto file = open_file(path, mode);
    if (!file.ok()) return file.status();
    return std::unique_ptr<File>(std::make_unique<FaultyFile>(std::move(*file), plan));
  };
}

struct Shards : TemporaryDirectory {
  Shards() {
    write_file(*this / "x.safetensors", one_tensor("x", "xxxx"));
    write_file(*this / "y.safetensors", one_tensor("y", "yyyyyyy"));
    write_file(*this / "z.safetensors", one_tensor("z", ""));
  }
};

// Opens, and reads everything.
Result<std::string> read_all(const std::string& path, const OpenFile& open) {
  auto directory = TensorDirectory::open(path, nullptr, open);
  if (!directory.ok()) return directory.status();
  std::string all;
  for (const auto& tensor : directory->tensors()) {
    std::string bytes(tensor.bytes, '?');
    if (Status status = directory->read(tensor, 0, bytes.size(), bytes.data()); !status.ok())
      return status;
    all += bytes;
  }
  return all;
}

auto open_descriptors() { return std::distance(fs::directory_iterator("/proc/self/fd"), {}); }

}  // namespace

// Fails the 1st, 2nd, ... call until a run gets through without meeting its fault.
TEST_CASE("the n-th read or open fails, once or for ever", "[checkpoint][mission-93]") {
  const Shards files;
  const auto descriptors = open_descriptors();
  for (const auto& [fault, for_ever, code] :
       {std::tuple(Fault::interrupted, false, StatusCode::ok),
        {Fault::short_read, false, StatusCode::ok},
        {Fault::short_read, true, StatusCode::ok},
        {Fault::io_error, false, StatusCode::unavailable},
        {Fault::io_error, true, StatusCode::unavailable},
        {Fault::early_end, false, StatusCode::data_loss},
        {Fault::early_end, true, StatusCode::data_loss},
        {Fault::cannot_open, false, StatusCode::resource_exhausted},
        {Fault::cannot_open, true, StatusCode::resource_exhausted}}) {
    int points = 0;
    for (int nth = 1;; ++nth) {
      Plan plan{fault, nth, for_ever};
      auto result = read_all(files.path(), faulty(&plan));
      CAPTURE(static_cast<int>(fault), for_ever, nth, result.status().message());
      if (!plan.reached()) {
        CHECK(result.ok());
        break;
      }
      ++points;
      CHECK(result.status().code() == code);
      if (result.ok())
        CHECK(*result == "xxxxyyyyyyy");
      else
        CHECK(says(result.status(), files.path() + "/"));  // which file it was
      CHECK(open_descriptors() == descriptors);
    }
    // Two reads a header and one a tensor that is not empty; one open a file.
    CHECK(points >= (fault == Fault::cannot_open ? 3 : 8));
  }
  Plan none{Fault::io_error, 1'000'000, false};
  CHECK(*read_all(files.path(), faulty(&none)) == "xxxxyyyyyyy");
}

TEST_CASE("a read that failed may be tried again", "[checkpoint][mission-93]") {
  const Shards files;
  Plan plan{Fault::io_error, 7, false};  // six reads for the headers
  auto directory = TensorDirectory::open(files.path(), nullptr, faulty(&plan));
  REQUIRE(directory.ok());
  char bytes[4];
  CHECK(directory->read(*directory->find("x"), 0, 4, bytes).code() == StatusCode::unavailable);
  CHECK(directory->read(*directory->find("x"), 0, 4, bytes).ok());
  CHECK(std::string(bytes, 4) == "xxxx");
}

namespace {

// One tensor of 1 MiB, opened; then somebody does something to the file.
struct InUse : TemporaryDirectory {
  explicit InUse(FileMode mode) : path(*this / "model.safetensors"), old(1 << 20, 'o') {
    write_file(path, one_tensor("t", old));
    // Before now, so that a change within the same tick of the clock is seen.
    fs::last_write_time(path, fs::last_write_time(path) - std::chrono::seconds(10));
    auto opened = TensorDirectory::open(
        this->TemporaryDirectory::path(), nullptr,
        [mode](const std::string& file, FileMode) { return open_file(file, mode); });
    REQUIRE(opened.ok());
    directory.emplace(std::move(*opened));
  }

  Status read() {
    bytes.assign(old.size(), '?');
    return directory->read(*directory->find("t"), 0, bytes.size(), bytes.data());
  }
  void check_refused(StatusCode code) {
    const Status status = read();
    CAPTURE(status.message());
    CHECK(status.code() == code);
    CHECK(status.place().file == path);
    CHECK(status.place().tensor == "t");
    CHECK(says(status, path));
    CHECK(says(status, "open the checkpoint again"));
  }

  std::string path, old, bytes;
  std::optional<TensorDirectory> directory;
};

}  // namespace

// The four ways of reliability.md 2.4. None may crash, or pass other bytes off as the tensor.
TEST_CASE("a file is changed while in use", "[checkpoint][mission-93]") {
  for (FileMode mode : {FileMode::stay_open, FileMode::open_per_read}) {
    InUse truncated(mode);
    fs::resize_file(truncated.path, 4096);
    truncated.check_refused(StatusCode::data_loss);

    InUse zeroed(mode);
    const auto size = fs::file_size(zeroed.path);
    fs::resize_file(zeroed.path, 0);
    fs::resize_file(zeroed.path, size);
    zeroed.check_refused(StatusCode::failed_precondition);

    InUse overwritten(mode);
    write_file(overwritten.path, one_tensor("t", std::string(overwritten.old.size(), 'n')));
    overwritten.check_refused(StatusCode::failed_precondition);

    // Whoever keeps the file open keeps the old one.
    InUse replaced(mode);
    write_file(replaced / "new", one_tensor("t", std::string(replaced.old.size(), 'n')));
    fs::rename(replaced / "new", replaced.path);
    if (mode == FileMode::open_per_read) {
      replaced.check_refused(StatusCode::failed_precondition);
    } else {
      REQUIRE(replaced.read().ok());
      CHECK(replaced.bytes == replaced.old);
    }
  }
}

TEST_CASE("a file is gone while in use", "[checkpoint][mission-93]") {
  InUse kept(FileMode::stay_open);
  fs::remove(kept.path);
  REQUIRE(kept.read().ok());
  CHECK(kept.bytes == kept.old);

  InUse reopened(FileMode::open_per_read);
  fs::remove(reopened.path);
  const Status status = reopened.read();
  CHECK(status.code() == StatusCode::not_found);
  CHECK(says(status, reopened.path));
}

TEST_CASE("what is no regular file is refused, and not waited for", "[checkpoint][mission-93]") {
  TemporaryDirectory files;
  REQUIRE(::mkfifo((files / "model.safetensors").c_str(), 0600) == 0);
  const Status status = TensorDirectory::open(files.path(), nullptr).status();
  CHECK(status.code() == StatusCode::invalid_argument);
  CHECK(says(status, "not a regular file"));
}
