#include "store/arena.h"

#include <algorithm>

namespace moe::cuda {
namespace {
constexpr size_t kChunk = size_t{1} << 20;
size_t rounded(size_t bytes) { return (std::max<size_t>(bytes, 1) + 255) / 256 * 256; }
}  // namespace

Result<std::byte*> Arena::take(size_t bytes) {
  const size_t size = rounded(bytes);
  std::lock_guard lock(mutex_);
  std::vector<std::byte*>& same = free_[size];
  if (!same.empty()) {
    std::byte* piece = same.back();
    same.pop_back();
    return piece;
  }
  same.reserve(same.capacity() + 1);  // so that give_back() never allocates
  if (size > fresh_bytes_) {
    MOE_ASSIGN_OR_RETURN(
        Buffer chunk, Buffer::allocate(memory_, std::max(size, kChunk), "tables on the GPU", 256));
    fresh_ = chunk.data();
    fresh_bytes_ = chunk.size();
    chunks_.push_back(std::move(chunk));
  }
  std::byte* piece = fresh_;
  fresh_ += size;
  fresh_bytes_ -= size;
  return piece;
}

void Arena::give_back(std::byte* piece, size_t bytes) noexcept {
  std::lock_guard lock(mutex_);
  free_.find(rounded(bytes))->second.push_back(piece);
}

}  // namespace moe::cuda
