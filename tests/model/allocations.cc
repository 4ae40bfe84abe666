#include "allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<int64_t> count{0}, outstanding{0};
std::atomic<int64_t> failing{0}, since{0};  // which call fails, and calls since that was said
std::atomic<bool> for_ever{false};

bool fails() {
  const int64_t nth = failing.load(std::memory_order_relaxed);
  if (nth == 0) return false;
  const int64_t call = ++since;
  return call == nth || (for_ever && call > nth);
}

void* allocate(size_t bytes, size_t alignment) noexcept {
  count.fetch_add(1, std::memory_order_relaxed);
  if (fails()) return nullptr;
  void* const memory =
      alignment == 0 ? std::malloc(bytes ? bytes : 1)
                     : std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
  if (memory) outstanding.fetch_add(1, std::memory_order_relaxed);
  return memory;
}

void* or_throw(void* memory) { return memory ? memory : throw std::bad_alloc(); }

void deallocate(void* memory) noexcept {
  if (memory) outstanding.fetch_sub(1, std::memory_order_relaxed);
  std::free(memory);
}

}  // namespace

void* operator new(size_t bytes) { return or_throw(allocate(bytes, 0)); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return or_throw(allocate(bytes, static_cast<size_t>(alignment)));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes, 0); }
void* operator new(size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return allocate(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { deallocate(memory); }
void operator delete(void* memory, size_t) noexcept { deallocate(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { deallocate(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { deallocate(memory); }

namespace moe::test {

int64_t allocations() { return count.load(); }
int64_t outstanding_allocations() { return outstanding.load(); }
bool allocation_failed() { return since.load() >= failing.load(); }
void fail_allocation(int64_t nth, bool ever) {
  since = 0;
  for_ever = ever;
  failing = nth;
}

}  // namespace moe::test
