#include "store/slot_pool.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "catch.h"

using namespace moe;

namespace {
// Counts what is out; may refuse the n-th request.
class CountingAllocator final : public Allocator {
 public:
  void* allocate(size_t bytes, size_t alignment) noexcept override {
    if (fail_at >= 0 && calls++ == fail_at) return nullptr;
    outstanding += static_cast<int64_t>(bytes);
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  }
  void deallocate(void* memory, size_t bytes, size_t) noexcept override {
    outstanding -= static_cast<int64_t>(bytes);
    std::free(memory);
  }
  int64_t outstanding = 0;
  int64_t calls = 0;
  int64_t fail_at = -1;
};

// The flags of the mapping that holds `address`, or nothing.
std::string mapping_flags(const void* address) {
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  std::ifstream smaps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%zx-%zx ", &begin, &end) == 2)
      inside = begin <= wanted && wanted < end;
    else if (inside && line.rfind("VmFlags:", 0) == 0)
      return line + " ";
  }
  return {};
}
}  // namespace

TEST_CASE("slots ask for huge pages", "[store]") {
  if (!std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled"))
    return test::skip("this system has no transparent huge pages");
  auto pool = SlotPool::create(3 << 20, 64, 100, {});
  REQUIRE(pool.ok());
  const auto slot = pool->take();
  REQUIRE(slot.ok());
  CHECK(mapping_flags(pool->address(*slot)).find(" hg ") != std::string::npos);
}

TEST_CASE("slots are distinct, aligned, writable and keep their address", "[store][mission-36]") {
  for (Allocator* memory :
       {static_cast<Allocator*>(nullptr), static_cast<Allocator*>(new CountingAllocator)}) {
    {
      auto pool = SlotPool::create(3 << 20, 64, 100, {memory});
      REQUIRE(pool.ok());
      CHECK(pool->committed_bytes() == 0);
      std::set<std::byte*> addresses;
      for (int i = 0; i < 100; ++i) {
        auto slot = pool->take();
        REQUIRE(slot.ok());
        REQUIRE(*slot == i);
        std::byte* address = pool->address(*slot);
        CHECK(reinterpret_cast<uintptr_t>(address) % 64 == 0);
        std::memset(address, i, pool->slot_bytes());
        addresses.insert(address);
      }
      CHECK(addresses.size() == 100);
      for (int i = 0; i < 100; ++i) {
        CHECK(addresses.count(pool->address(i)) == 1);
        CHECK(pool->address(i)[0] == static_cast<std::byte>(i));
        CHECK(pool->address(i)[pool->slot_bytes() - 1] == static_cast<std::byte>(i));
      }
      const Status full = pool->take().status();
      CHECK(full.code() == StatusCode::resource_exhausted);
      CHECK(full.message().find("100 slots") != std::string_view::npos);
      pool->give_back(42);
      CHECK(*pool->take() == 42);
    }
    if (auto* counting = static_cast<CountingAllocator*>(memory)) {
      CHECK(counting->outstanding == 0);
      delete counting;
    }
  }
}

TEST_CASE("a failed commit changes nothing and can be retried", "[store][mission-93]") {
  CountingAllocator memory;
  memory.fail_at = 1;
  auto pool = SlotPool::create(64 << 20, 64, 3, {&memory});  // one slot a chunk
  REQUIRE(pool.ok());
  REQUIRE(pool->take().ok());
  const size_t before = pool->committed_bytes();
  CHECK(pool->take().status().code() == StatusCode::resource_exhausted);
  CHECK(pool->committed_bytes() == before);
  CHECK(*pool->take() == 1);
}

TEST_CASE("a pool larger than the address space is refused", "[store]") {
  CHECK(SlotPool::create(size_t{1} << 40, 64, int64_t{1} << 40).status().code() ==
        StatusCode::resource_exhausted);
  CHECK(SlotPool::create(1, 64, -1).status().code() == StatusCode::resource_exhausted);
}

namespace {
// A device of host memory that has addresses of its own.
class PlayedDevice final : public StoreDevice {
 public:
  class Range final : public DeviceRange {
   public:
    Range(PlayedDevice& device, size_t bytes) : device_(device), bytes_(bytes) {}
    std::byte* base() const override { return bytes_.get(); }
    Status commit(size_t offset, size_t bytes) override {
      if (device_.committed + bytes > device_.most)
        return Status(StatusCode::resource_exhausted, "full");
      device_.committed += bytes;
      REQUIRE(device_.parts.emplace(offset, bytes).second);
      return {};
    }
    void decommit(size_t offset, size_t bytes) noexcept override {
      device_.committed -= bytes;
      if (device_.parts.erase({offset, bytes}) != 1) std::abort();
    }

   private:
    PlayedDevice& device_;
    struct Bytes {
      explicit Bytes(size_t count) : data(count) {}
      std::byte* get() const { return const_cast<std::byte*>(data.data()); }
      std::vector<std::byte> data;
    } bytes_;
  };

  static Status none() { return Status(StatusCode::unimplemented, "none"); }
  Allocator& memory() override { return allocator; }
  size_t free_bytes() const override { return most - committed; }
  bool moves() const override { return true; }
  Result<std::unique_ptr<DeviceRange>> reserve(size_t bytes) override {
    return std::unique_ptr<DeviceRange>(new Range(*this, bytes));
  }
  Result<uint64_t> digest(const std::byte*, size_t) override { return none(); }
  Result<uint64_t> fill(std::byte*, size_t, const std::function<Status(std::byte*)>&) override {
    return none();
  }
  bool generates(const ExpertGemm&) const override { return false; }
  Result<uint64_t> generate(std::byte*, const ExpertSpec&, const GeneratedWeights&, int32_t,
                            int32_t) override {
    return none();
  }
  Result<std::unique_ptr<DeviceCopy>> copy(const LayerSpec&, const LayerBlock&) override {
    return none();
  }
  Status publish(size_t, ExpertTable&) override { return {}; }
  Status wait_for_grace(const Clock&, int64_t) override { return {}; }

  CountingAllocator allocator;
  size_t committed = 0, most = size_t{1} << 30;
  std::set<std::pair<size_t, size_t>> parts;
};
}  // namespace

TEST_CASE("a moving pool on a device gets memory slot by slot and gives it back", "[store]") {
  PlayedDevice device;
  auto pool = SlotPool::create(1000, 256, 8, {&device.memory(), true, &device, true});
  REQUIRE(pool.ok());
  CHECK(pool->moving());
  CHECK(device.committed == 0);
  std::vector<std::byte*> addresses;
  for (int64_t i = 0; i < 6; ++i) {
    REQUIRE(*pool->take() == i);
    addresses.push_back(pool->address(i));
    CHECK(addresses.back() == pool->address(0) + i * static_cast<int64_t>(pool->slot_bytes()));
  }
  CHECK(device.committed == 6 * pool->slot_bytes());
  CHECK(device.committed == pool->committed_bytes());
  for (const int64_t slot : {1, 4, 5}) pool->give_back(slot);
  pool->set_limit(4);
  pool->trim(4);
  CHECK(device.committed == 4 * pool->slot_bytes());
  REQUIRE(*pool->take() == 1);  // which kept its memory
  CHECK_FALSE(pool->take().ok());
  pool->set_limit(8);
  device.most = device.committed;
  const auto full = pool->take();
  CHECK(full.status().code() == StatusCode::resource_exhausted);
  CHECK(full.status().message().find("free on the device 0") != std::string_view::npos);
  device.most = size_t{1} << 30;
  REQUIRE(*pool->take() == 4);
  CHECK(pool->address(4) == addresses[4]);
  CHECK(device.allocator.outstanding == 0);

  auto whole = SlotPool::create(1000, 256, 8, {&device.memory(), true, &device, false});
  REQUIRE(whole.ok());
  CHECK_FALSE(whole->moving());
  CHECK(device.allocator.outstanding > 0);
}
