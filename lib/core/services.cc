#include "core/services.h"

#include <chrono>
#include <new>

#include "core/error.h"

namespace moe {
namespace {

class NewAllocator final : public Allocator {
 public:
  void* allocate(size_t bytes, size_t alignment) noexcept override {
    return ::operator new(bytes, std::align_val_t(alignment), std::nothrow);
  }
  void deallocate(void* memory, size_t, size_t alignment) noexcept override {
    ::operator delete(memory, std::align_val_t(alignment));
  }
};

class SteadyClock final : public Clock {
 public:
  int64_t now_ns() const noexcept override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
};

}  // namespace

Allocator& default_allocator() {
  static NewAllocator allocator;
  return allocator;
}

const Clock& default_clock() {
  static const SteadyClock clock;
  return clock;
}

Result<Services> Services::resolve(const HostServices& host) {
  Services services;
  services.host_ = host;
  if (!host.memory) services.host_.memory = &default_allocator();
  if (!host.clock) services.host_.clock = &default_clock();
  if (!host.executor) {
    MOE_ASSIGN_OR_RETURN(services.own_executor_, make_executor());
    services.host_.executor = services.own_executor_.get();
  }
  return services;
}

}  // namespace moe
