// Memory from an Allocator that frees itself.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "core/error.h"
#include "moe/host.h"

namespace moe {

class Buffer {
 public:
  Buffer() = default;
  // `what` completes "no memory for ...".
  static Result<Buffer> allocate(Allocator& allocator, size_t bytes, std::string_view what,
                                 size_t alignment = 64) {
    Buffer buffer;
    if (bytes == 0) return buffer;
    void* data = allocator.allocate(bytes, alignment);
    if (!data)
      return error(StatusCode::resource_exhausted, {}, "no memory for {}: asked {} bytes", what,
                   bytes);
    buffer.allocator_ = &allocator;
    buffer.data_ = static_cast<std::byte*>(data);
    buffer.bytes_ = bytes;
    buffer.alignment_ = alignment;
    return buffer;
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(allocator_, other.allocator_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(alignment_, other.alignment_);
    return *this;
  }
  ~Buffer() {
    if (data_) allocator_->deallocate(data_, bytes_, alignment_);
  }

  std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }
  std::span<std::byte> span() const { return {data_, bytes_}; }

 private:
  Allocator* allocator_ = nullptr;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  size_t alignment_ = 0;
};

}  // namespace moe
