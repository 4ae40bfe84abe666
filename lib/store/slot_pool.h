// Slots of one size class: equal pieces of one address range that is reserved once and committed
// in chunks, so that a slot's address never changes while the number of slots grows and shrinks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "moe/host.h"
#include "moe/status.h"
#include "store/device.h"

namespace moe {

// Where a pool's memory comes from; the default is the system.
struct SlotMemory {
  Allocator* allocator = nullptr;
  bool contiguous = false;        // slots lie at equal steps from address(0)
  StoreDevice* device = nullptr;  // asked for its free bytes where memory ends
  bool moving = false;            // slots get memory one by one: the device moves()
};

// Not thread-safe: the store serialises. Slots are handed out lowest index first.
class SlotPool {
 public:
  // Bytes from one slot to the next: whole pages, unless `memory` is given.
  static size_t stride(size_t slot_bytes, size_t alignment, const SlotMemory& memory);

  // Reserves addresses for `capacity` slots of at least `slot_bytes`; commits nothing.
  // With memory.allocator the chunks come from it instead, and only their addresses are stable; a
  // contiguous pool is one chunk, committed here, unless it is moving.
  static Result<SlotPool> create(size_t slot_bytes, size_t alignment, int64_t capacity,
                                 const SlotMemory& memory = {});
  SlotPool(SlotPool&& other) noexcept;
  SlotPool& operator=(SlotPool&&) = delete;
  ~SlotPool();

  // A free slot, or resource_exhausted with asked and committed bytes.
  Result<int64_t> take();
  void give_back(int64_t slot);

  std::byte* address(int64_t slot) const;
  size_t slot_bytes() const { return slot_bytes_; }
  size_t committed_bytes() const { return static_cast<size_t>(committed_) * slot_bytes_; }
  int64_t capacity() const { return capacity_; }
  int64_t used() const { return used_; }
  int64_t free() const {
    return limit_ - used_;
  }  // slots that take() would give, memory permitting

  bool moving() const { return range_ != nullptr; }

  // Slots that may be taken, at most capacity(); that many unless told otherwise. May be below
  // used(): then none is given until enough have come back.
  void set_limit(int64_t slots) { limit_ = slots < capacity_ ? slots : capacity_; }
  int64_t limit() const { return limit_; }
  // Gives memory of free slots back until at most `slots` are committed, or none is left to give.
  void trim(int64_t slots);
  int64_t largest_free_run() const;  // adjacent free slots

 private:
  SlotPool() = default;
  size_t offset_of(int64_t slot) const { return slot_bytes_ * static_cast<size_t>(slot); }
  Status commit(int64_t first, int64_t slots);

  size_t slot_bytes_ = 0;  // stride()
  size_t alignment_ = 0;
  int64_t capacity_ = 0;
  int64_t limit_ = 0;
  int64_t committed_ = 0;  // slots
  int64_t used_ = 0;
  int64_t chunk_slots_ = 0;
  SlotMemory memory_;
  std::byte* base_ = nullptr;           // of the reserved range; null with a host allocator
  std::unique_ptr<DeviceRange> range_;  // of a moving pool
  std::vector<std::byte*> chunks_;      // with a host allocator; null: given back
  std::vector<bool> taken_;             // per slot that was ever committed
  std::vector<bool> backed_;            // ditto: has memory
};

}  // namespace moe
