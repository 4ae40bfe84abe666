// A File that is a string, and one whose n-th read fails.
#pragma once

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "core/file.h"

namespace moe::test {

class MemoryFile : public File {
 public:
  explicit MemoryFile(std::string bytes, std::string path = "memory.safetensors")
      : bytes_(std::move(bytes)), path_(std::move(path)) {}

  std::string_view path() const noexcept override { return path_; }
  uint64_t size() const noexcept override { return bytes_.size(); }
  int64_t pread(void* out, size_t bytes, uint64_t offset) const noexcept override {
    if (offset >= bytes_.size()) return 0;
    const size_t count = std::min<size_t>(bytes, bytes_.size() - offset);
    std::memcpy(out, bytes_.data() + offset, count);
    return static_cast<int64_t>(count);
  }
  Status check_unchanged() const override { return {}; }

 private:
  std::string bytes_, path_;
};

}  // namespace moe::test
