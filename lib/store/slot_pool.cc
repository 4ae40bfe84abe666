#include "store/slot_pool.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <sys/mman.h>

#include "core/error.h"
#include "core/numa.h"

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

Result<std::unique_ptr<DeviceRange>> StoreDevice::reserve(size_t) {
  return error(StatusCode::unimplemented, {}, "this device has no addresses to reserve");
}

Result<SlotPool> SlotPool::create(size_t slot_bytes, size_t alignment, int64_t capacity,
                                  const SlotMemory& memory) {
  SlotPool pool;
  pool.alignment_ = slot_alignment(alignment, memory);
  pool.slot_bytes_ = stride(slot_bytes, alignment, memory);
  pool.capacity_ = pool.limit_ = capacity;
  pool.memory_ = memory;
  pool.chunk_slots_ = std::max<int64_t>(1, static_cast<int64_t>(kChunkBytes / pool.slot_bytes_));
  if (memory.allocator) pool.chunk_slots_ = 1;  // so that each can be given back
  size_t bytes = 0;
  if (capacity < 0 ||
      __builtin_mul_overflow(pool.slot_bytes_, static_cast<size_t>(capacity), &bytes))
    return error(StatusCode::resource_exhausted, {},
                 "{} slots of {} bytes do not fit into the address space", capacity,
                 pool.slot_bytes_);
  if (memory.moving && bytes > 0) {
    MOE_ASSIGN_OR_RETURN(pool.range_, memory.device->reserve(bytes));
    pool.base_ = pool.range_->base();
    pool.chunk_slots_ = 1;
    pool.memory_.allocator = nullptr;
    pool.memory_.contiguous = false;
    return pool;
  }
  if (memory.contiguous) {
    pool.chunk_slots_ = std::max<int64_t>(1, capacity);
    if (bytes > 0) MOE_RETURN_IF_ERROR(pool.commit(0, capacity));
  }
  if (memory.allocator || bytes == 0) return pool;
  void* base = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    return error(StatusCode::resource_exhausted, {},
                 "cannot reserve {} bytes of address space for {} slots: {}", bytes, capacity,
                 std::strerror(errno));
  // An expert read front to back crosses a page every 4 KiB, where fetching ahead begins anew.
  // Refused where the system has no huge pages: then pages are small.
  madvise(base, bytes, MADV_HUGEPAGE);
  spread(base, bytes, own_nodes());
  pool.base_ = static_cast<std::byte*>(base);
  return pool;
}

SlotPool::SlotPool(SlotPool&& other) noexcept
    : slot_bytes_(other.slot_bytes_),
      alignment_(other.alignment_),
      capacity_(other.capacity_),
      limit_(other.limit_),
      committed_(std::exchange(other.committed_, 0)),
      used_(std::exchange(other.used_, 0)),
      chunk_slots_(other.chunk_slots_),
      memory_(other.memory_),
      base_(std::exchange(other.base_, nullptr)),
      range_(std::move(other.range_)),
      chunks_(std::move(other.chunks_)),
      taken_(std::move(other.taken_)),
      backed_(std::move(other.backed_)) {}

SlotPool::~SlotPool() {
  if (base_ && !range_) munmap(base_, slot_bytes_ * static_cast<size_t>(capacity_));
  for (std::byte* chunk : chunks_)
    if (chunk)
      memory_.allocator->deallocate(chunk, slot_bytes_ * static_cast<size_t>(chunk_slots_),
                                    alignment_);
}

// Gives memory to `slots` slots from `first` on.
Status SlotPool::commit(int64_t first, int64_t slots) {
  const size_t bytes = slot_bytes_ * static_cast<size_t>(slots),
               end = static_cast<size_t>(first + slots);
  if (taken_.size() < end) taken_.resize(end, false), backed_.resize(end, false);
  bool done;
  if (range_) {
    done = range_->commit(offset_of(first), bytes).ok();
  } else if (memory_.allocator) {
    const auto chunk = static_cast<size_t>(first / chunk_slots_);
    if (chunks_.size() <= chunk) chunks_.resize(chunk + 1);
    chunks_[chunk] = static_cast<std::byte*>(memory_.allocator->allocate(bytes, alignment_));
    done = chunks_[chunk] != nullptr;
  } else {
    done = mprotect(address(first), bytes, PROT_READ | PROT_WRITE) == 0;
  }
  if (!done)
    return error(
        StatusCode::resource_exhausted, {},
        "no memory for {} more expert slots of {} bytes: asked {}, committed so far {}{}", slots,
        slot_bytes_, bytes, committed_bytes(),
        memory_.device ? fmt::format(", free on the device {}", memory_.device->free_bytes()) : "");
  for (int64_t slot = first; slot < first + slots; ++slot)
    backed_[static_cast<size_t>(slot)] = true;
  committed_ += slots;
  return {};
}

Result<int64_t> SlotPool::take() {
  if (used_ >= limit_)
    return error(StatusCode::resource_exhausted, {},
                 "all {} slots of {} bytes are taken; evict an expert or raise expert_memory",
                 limit_, slot_bytes_);
  int64_t slot = 0;
  const auto size = static_cast<int64_t>(taken_.size());
  const auto state = [&](const std::vector<bool>& bits) { return bits[static_cast<size_t>(slot)]; };
  if (used_ < committed_) {  // one that has memory
    while (state(taken_) || !state(backed_)) ++slot;
  } else {
    while (slot < size && state(backed_)) ++slot;
    const int64_t end = slot < size ? slot + 1 : std::min(slot + chunk_slots_, limit_);
    MOE_RETURN_IF_ERROR(
        commit(slot, memory_.contiguous ? chunk_slots_ : std::max(end, slot + 1) - slot));
  }
  taken_[static_cast<size_t>(slot)] = true;
  ++used_;
  return slot;
}

void SlotPool::trim(int64_t slots) {
  if (memory_.contiguous) return;
  for (auto slot = static_cast<int64_t>(taken_.size()) - 1; slot >= 0 && committed_ > slots;
       --slot) {
    const auto i = static_cast<size_t>(slot);
    if (taken_[i] || !backed_[i]) continue;
    if (range_) {
      range_->decommit(offset_of(slot), slot_bytes_);
    } else if (memory_.allocator) {
      memory_.allocator->deallocate(std::exchange(chunks_[i], nullptr), slot_bytes_, alignment_);
    } else {
      madvise(address(slot), slot_bytes_, MADV_DONTNEED);
      mprotect(address(slot), slot_bytes_, PROT_NONE);
    }
    backed_[i] = false;
    --committed_;
  }
}

int64_t SlotPool::largest_free_run() const {
  int64_t best = 0, run = 0;
  for (int64_t slot = 0; slot < limit_; ++slot) {
    const bool taken =
        slot < static_cast<int64_t>(taken_.size()) && taken_[static_cast<size_t>(slot)];
    run = taken ? 0 : run + 1;
    best = std::max(best, run);
  }
  return best;
}

void SlotPool::give_back(int64_t slot) {
  taken_[static_cast<size_t>(slot)] = false;
  --used_;
}

std::byte* SlotPool::address(int64_t slot) const {
  if (!memory_.allocator) return base_ + offset_of(slot);
  return chunks_[static_cast<size_t>(slot / chunk_slots_)] +
         slot_bytes_ * static_cast<size_t>(slot % chunk_slots_);
}

}  // namespace moe
