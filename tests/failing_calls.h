// A file system that fails where a test says.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <functional>
#include <utility>

#include "core/new_file.h"

namespace moe::test {

// The n-th call of any kind fails, or is `crash`'s to end. A failing write puts half of its bytes.
class FailingCalls final : public FileCalls {
 public:
  // Writes put at most `piece` bytes.
  explicit FailingCalls(int nth, std::function<void()> crash = nullptr, size_t piece = 100)
      : nth_(nth), piece_(piece), crash_(std::move(crash)) {}

  ssize_t write(int descriptor, const void* data, size_t bytes) override {
    const size_t piece = std::min(bytes, piece_);
    if (!fails()) return FileCalls::write(descriptor, data, piece);
    FileCalls::write(descriptor, data, piece / 2);
    return give_up(ENOSPC);
  }
  int sync(int descriptor) override { return fails() ? give_up(EIO) : FileCalls::sync(descriptor); }
  int rename(const char* from, const char* to) override {
    if (!fails()) return FileCalls::rename(from, to);
    if (crash_ && after_rename_) FileCalls::rename(from, to);
    return give_up(EIO);
  }
  bool reached() const { return calls_ >= nth_; }
  void crash_after_rename() { after_rename_ = true; }

 private:
  bool fails() { return ++calls_ == nth_; }
  int give_up(int error) {
    if (crash_) crash_();
    errno = error;
    return -1;
  }

  const int nth_;
  const size_t piece_;
  int calls_ = 0;
  bool after_rename_ = false;
  std::function<void()> crash_;
};

}  // namespace moe::test
