// Small pieces of device memory that come and go while kernels run: cudaFree would wait for them.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <vector>

#include "core/buffer.h"

namespace moe::cuda {

// Pieces go back to `memory` with the arena alone. Safe for concurrent use.
class Arena {
 public:
  explicit Arena(Allocator& memory) : memory_(memory) {}

  // At least `bytes` at a multiple of 256; resource_exhausted if there is no memory.
  Result<std::byte*> take(size_t bytes);
  // What take(bytes) returned, once no kernel can read it any more.
  void give_back(std::byte* piece, size_t bytes) noexcept;

 private:
  Allocator& memory_;
  std::mutex mutex_;
  std::vector<Buffer> chunks_;
  std::byte* fresh_ = nullptr;  // the rest of the newest chunk
  size_t fresh_bytes_ = 0;
  std::map<size_t, std::vector<std::byte*>> free_;  // by size
};

}  // namespace moe::cuda
