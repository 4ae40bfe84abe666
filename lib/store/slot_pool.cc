#include "store/slot_pool.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <sys/mman.h>

#include "core/error.h"

namespace moe {
namespace {
constexpr size_t kPage = 4096;  // slots can be read into with O_DIRECT
constexpr size_t kChunkBytes = size_t{64} << 20;

size_t slot_alignment(size_t alignment, const SlotMemory& memory) {
  return std::max(alignment, memory.allocator ? size_t{64} : kPage);
}
}  // namespace

size_t SlotPool::stride(size_t slot_bytes, size_t alignment, const SlotMemory& memory) {
  const size_t step = slot_alignment(alignment, memory);
  return (std::max<size_t>(slot_bytes, 1) + step - 1) / step * step;
}

Result<SlotPool> SlotPool::create(size_t slot_bytes, size_t alignment, int64_t capacity,
                                  const SlotMemory& memory) {
  SlotPool pool;
  pool.alignment_ = slot_alignment(alignment, memory);
  pool.slot_bytes_ = stride(slot_bytes, alignment, memory);
  pool.capacity_ = capacity;
  pool.memory_ = memory;
  pool.chunk_slots_ = std::max<int64_t>(1, static_cast<int64_t>(kChunkBytes / pool.slot_bytes_));
  if (memory.contiguous) pool.chunk_slots_ = std::max<int64_t>(1, capacity);
  size_t bytes = 0;
  if (capacity < 0 ||
      __builtin_mul_overflow(pool.slot_bytes_, static_cast<size_t>(capacity), &bytes))
    return error(StatusCode::resource_exhausted, {},
                 "{} slots of {} bytes do not fit into the address space", capacity,
                 pool.slot_bytes_);
  if (memory.contiguous && bytes > 0) MOE_RETURN_IF_ERROR(pool.commit_chunk());
  if (memory.allocator || bytes == 0) return pool;
  void* base = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    return error(StatusCode::resource_exhausted, {},
                 "cannot reserve {} bytes of address space for {} slots: {}", bytes, capacity,
                 std::strerror(errno));
  pool.base_ = static_cast<std::byte*>(base);
  return pool;
}

SlotPool::SlotPool(SlotPool&& other) noexcept
    : slot_bytes_(other.slot_bytes_),
      alignment_(other.alignment_),
      capacity_(other.capacity_),
      committed_(std::exchange(other.committed_, 0)),
      used_(std::exchange(other.used_, 0)),
      chunk_slots_(other.chunk_slots_),
      memory_(other.memory_),
      base_(std::exchange(other.base_, nullptr)),
      chunks_(std::move(other.chunks_)),
      taken_(std::move(other.taken_)) {}

SlotPool::~SlotPool() {
  if (base_) munmap(base_, slot_bytes_ * static_cast<size_t>(capacity_));
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const int64_t slots =
        std::min(chunk_slots_, committed_ - static_cast<int64_t>(i) * chunk_slots_);
    memory_.allocator->deallocate(chunks_[i], slot_bytes_ * static_cast<size_t>(slots), alignment_);
  }
}

Status SlotPool::commit_chunk() {
  const int64_t slots = std::min(chunk_slots_, capacity_ - committed_);
  const size_t bytes = slot_bytes_ * static_cast<size_t>(slots);
  if (slots == 0)
    return error(StatusCode::resource_exhausted, {},
                 "all {} slots of {} bytes are taken; evict an expert or raise expert_memory",
                 capacity_, slot_bytes_);
  taken_.resize(static_cast<size_t>(committed_ + slots), false);
  bool done;
  if (memory_.allocator) {
    chunks_.reserve(chunks_.size() + 1);
    void* chunk = memory_.allocator->allocate(bytes, alignment_);
    done = chunk != nullptr;
    if (done) chunks_.push_back(static_cast<std::byte*>(chunk));
  } else {
    done = mprotect(address(committed_), bytes, PROT_READ | PROT_WRITE) == 0;
  }
  if (!done)
    return error(
        StatusCode::resource_exhausted, {},
        "no memory for {} more expert slots of {} bytes: asked {}, committed so far {}{}", slots,
        slot_bytes_, bytes, committed_bytes(),
        memory_.device ? fmt::format(", free on the device {}", memory_.device->free_bytes()) : "");
  committed_ += slots;
  return {};
}

Result<int64_t> SlotPool::take() {
  if (used_ == committed_) MOE_RETURN_IF_ERROR(commit_chunk());
  const auto free = std::find(taken_.begin(), taken_.begin() + committed_, false);
  *free = true;
  ++used_;
  return free - taken_.begin();
}

void SlotPool::give_back(int64_t slot) {
  taken_[static_cast<size_t>(slot)] = false;
  --used_;
}

std::byte* SlotPool::address(int64_t slot) const {
  if (!memory_.allocator) return base_ + slot_bytes_ * static_cast<size_t>(slot);
  return chunks_[static_cast<size_t>(slot / chunk_slots_)] +
         slot_bytes_ * static_cast<size_t>(slot % chunk_slots_);
}

}  // namespace moe
