// A store whose slots lie on a device, played by host memory: what is copied where, what a table's
// copy names, and what happens when the device fails or its readers do not leave.
#include "store/device.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "model/random_model.h"
#include "moe/expert_store.h"
#include "store/store_impl.h"
#include "store_faults.h"

using namespace moe;
using moe::test::Random;
using moe::test::RandomModel;

namespace {

// What a device was told, kept beyond its life.
struct Told {
  int64_t memory_out = 0;                         // bytes of slots
  int64_t copies_out = 0;                         // of blocks and tables
  std::map<size_t, std::vector<int64_t>> tables;  // by layer: the newest one's slots
  std::map<size_t, uint64_t> epochs;
  int64_t fills = 0, publishes = 0, graces = 0;
  int64_t fail_fill = -1, fail_copy = -1, fail_publish = -1;
  bool readers_stay = false;
} told;

class Copy final : public DeviceCopy {
 public:
  Copy() { ++told.copies_out; }
  ~Copy() override { --told.copies_out; }
};

class FakeDevice final : public StoreDevice, public Allocator {
 public:
  void* allocate(size_t bytes, size_t alignment) noexcept override {
    told.memory_out += static_cast<int64_t>(bytes);
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  }
  void deallocate(void* memory, size_t bytes, size_t) noexcept override {
    told.memory_out -= static_cast<int64_t>(bytes);
    std::free(memory);
  }
  Allocator& memory() override { return *this; }
  size_t free_bytes() const override { return 12345; }

  Result<uint64_t> digest(const std::byte* slot, size_t bytes) override {
    uint64_t sum = bytes;
    for (size_t i = 0; i < bytes; ++i) sum = sum * 31 + static_cast<uint64_t>(slot[i]);
    return sum;
  }
  bool generates(const ExpertGemm&) const override { return false; }
  Result<uint64_t> generate(std::byte*, const ExpertSpec&, const GeneratedWeights&, int32_t,
                            int32_t) override {
    return failure();
  }
  Result<uint64_t> fill(std::byte* slot, size_t bytes,
                        const std::function<Status(std::byte*)>& pack) override {
    if (count_fill() == told.fail_fill) return failure();
    std::vector<std::byte> staging(bytes + 64);
    std::byte* aligned = staging.data() + (64 - reinterpret_cast<uintptr_t>(staging.data()) % 64);
    if (Status status = pack(aligned); !status.ok()) return status;
    std::memcpy(slot, aligned, bytes);
    return digest(slot, bytes);
  }
  Result<std::unique_ptr<DeviceCopy>> copy(const LayerSpec&, const LayerBlock&) override {
    if (told.fail_copy >= 0 && told.copies_out >= told.fail_copy) return failure();
    return std::make_unique<Copy>();
  }
  Status publish(size_t layer, ExpertTable& table) override {
    if (told.publishes++ == told.fail_publish) return failure();
    table.copy = std::make_unique<Copy>();
    told.tables[layer].clear();
    for (const TableCopy& copy : table.experts) told.tables[layer].push_back(copy.slot_index);
    told.epochs[layer] = table.epoch;
    return {};
  }
  Status wait_for_grace(const Clock&, int64_t) override {
    ++told.graces;
    return told.readers_stay ? Status(StatusCode::deadline_exceeded, "a graph still runs")
                             : Status();
  }

 private:
  static int64_t count_fill() {  // threads fill at once
    static std::mutex mutex;
    std::lock_guard lock(mutex);
    return told.fills++;
  }
  static Status failure() { return Status(StatusCode::unavailable, "injected device error"); }
};

Result<std::unique_ptr<StoreDevice>> make_device(int32_t, size_t, const Services&) {
  return std::make_unique<FakeDevice>();
}

LayerSpec layer_of(int32_t layer) { return test::small_layer(layer, 6); }

constexpr int64_t kFarAway = INT64_MAX / 2;

}  // namespace

TEST_CASE("a device's slots hold what the backend packed", "[store][gpu-seam][mission-41]") {
  told = {};
  Random random(test::seed());
  RandomModel source({layer_of(2), layer_of(5)}, random);
  {
    auto store = ExpertStore::Impl::open(source.source(), {}, make_device);
    INFO(store.status().message());
    REQUIRE(store.ok());
    CHECK(told.fills == 14);
    CHECK(told.publishes == 2);
    CHECK(told.copies_out == 4);
    for (const auto& layer : (*store)->layers) {
      const Compute& compute = layer->routed;
      const SlotPool& pool = *(*store)->classes[compute.slot_class].pool;
      std::vector<std::byte> wanted(compute.layout.bytes);
      for (int32_t e = 0; e < 6; ++e) {
        const int64_t slot = told.tables[layer->index][static_cast<size_t>(e)];
        CHECK(slot == layer->experts[static_cast<size_t>(e)].first);
        REQUIRE(compute.gemm
                    ->pack(layer->spec.expert, source.source(), layer->spec.layer, e, wanted.data())
                    .ok());
        CHECK(std::memcmp(pool.address(0) + slot * static_cast<int64_t>(pool.slot_bytes()),
                          wanted.data(), wanted.size()) == 0);
      }
      CHECK(told.epochs[layer->index] == layer->table.load()->epoch);
    }
  }
  CHECK(told.memory_out == 0);
  CHECK(told.copies_out == 0);
}

TEST_CASE("a device that fails leaves nothing behind", "[store][gpu-seam]") {
  Random random(test::seed());
  RandomModel source({layer_of(0), layer_of(1)}, random);
  for (int64_t Told::*what : {&Told::fail_fill, &Told::fail_copy, &Told::fail_publish}) {
    told = {};
    told.*what = 1;
    auto store = ExpertStore::Impl::open(source.source(), {}, make_device);
    REQUIRE(!store.ok());
    CHECK(store.status().code() == StatusCode::unavailable);
    CHECK(store.status().message() == "injected device error");
    CHECK(told.memory_out == 0);
    CHECK(told.copies_out == 0);
  }
}

TEST_CASE("a slot is not reused while the device may read it", "[store][gpu-seam]") {
  told = {};
  Random random(test::seed());
  RandomModel source({layer_of(0)}, random);
  size_t slot_bytes = 0, shared_bytes = 0;
  {
    auto all = ExpertStore::Impl::open(source.source(), {}, make_device);
    REQUIRE(all.ok());
    slot_bytes = (*all)->classes[0].pool->slot_bytes();
    shared_bytes = (*all)->classes[1].pool->slot_bytes();
  }
  told = {};
  auto store = ExpertStore::Impl::open(
      source.source(), {.expert_memory = 4 * slot_bytes + shared_bytes}, make_device);
  INFO(store.status().message());
  REQUIRE(store.ok());
  StoreLayer& layer = *(*store)->layers[0];
  Wave wave;
  const std::vector<Need> first = {{0}, {1}}, second = {{2}, {3}};
  const std::vector<int32_t> first_ids = {0, 1}, second_ids = {2, 3};
  (*store)->accessed(layer, first_ids);
  REQUIRE((*store)->acquire(layer, first, kFarAway, &wave).ok());
  CHECK(wave.members.size() == 2);
  (*store)->release(layer, &wave);

  told.readers_stay = true;
  (*store)->accessed(layer, second_ids);
  const Status late = (*store)->acquire(layer, second, kFarAway, &wave);
  CHECK(late.code() == StatusCode::deadline_exceeded);
  CHECK(told.tables[0][0] >= 0);  // the victims serve again
  CHECK(told.tables[0][1] >= 0);

  told.readers_stay = false;
  REQUIRE((*store)->acquire(layer, second, kFarAway, &wave).ok());
  CHECK(told.tables[0][0] == -1);
  CHECK(told.tables[0][2] >= 0);
  (*store)->release(layer, &wave);
  CHECK(told.graces == 2);
}

TEST_CASE("a scrub asks the device, and replaces what changed there", "[store][gpu-seam]") {
  told = {};
  Random random(test::seed());
  RandomModel source({layer_of(0)}, random);
  auto store = ExpertStore::Impl::open(source.source(), {}, make_device);
  REQUIRE(store.ok());
  const StoreLayer& layer = *(*store)->layers[0];
  const SlotPool& pool = *(*store)->classes[layer.routed.slot_class].pool;
  const auto scrub = [&] {
    const auto report = (*store)->scrub(0, 0);
    INFO(report.status().message());
    REQUIRE(report.ok());
    return *report;
  };
  CHECK(scrub().copies == 7);  // the shared one too
  const int64_t before = told.tables[0][3];
  pool.address(before)[5] ^= std::byte{4};
  ScrubReport report = scrub();
  CHECK(report.found == 1);
  CHECK(report.repaired == 1);
  const int64_t after = told.tables[0][3];
  CHECK(after != before);
  CHECK(scrub().found == 0);

  // All is resident, so that kernels count on every expert: what cannot be read again stays.
  pool.address(after)[5] ^= std::byte{4};
  told.fail_fill = told.fills;
  report = scrub();
  CHECK(report.found == 1);
  CHECK(report.repaired == 0);
  CHECK(told.tables[0][3] == after);
  CHECK(scrub().repaired == 1);
}

TEST_CASE("a paged store on a device takes new versions", "[store][gpu-seam]") {
  told = {};
  Random random(test::seed());
  RandomModel one({layer_of(0)}, random), two({layer_of(0)}, random);
  size_t bytes = 0;
  {
    auto all = ExpertStore::Impl::open(one.source(), {}, make_device);
    REQUIRE(all.ok());
    bytes = 4 * (*all)->classes[0].pool->slot_bytes() + (*all)->classes[1].pool->slot_bytes();
  }
  auto store = ExpertStore::Impl::open(one.source(), {.expert_memory = bytes}, make_device);
  REQUIRE(store.ok());
  const auto version = (*store)->reload(two.source(), {});
  INFO(version.status().message());
  REQUIRE(version.ok());
  CHECK(*version == 2);
  StoreLayer& layer = *(*store)->layers[0];
  Wave wave;
  const std::vector<Need> needs = {{4, *version}};
  const std::vector<int32_t> ids = {4};
  (*store)->accessed(layer, ids);
  REQUIRE((*store)->acquire(layer, needs, kFarAway, &wave).ok());
  REQUIRE(wave.members.size() == 1);
  std::vector<std::byte> wanted(layer.routed.layout.bytes);
  REQUIRE(layer.routed.gemm->pack(layer.spec.expert, two.source(), 0, 4, wanted.data()).ok());
  CHECK(std::memcmp(wave.members[0].slot, wanted.data(), wanted.size()) == 0);
  (*store)->release(layer, &wave);

  const Status still = (*store)->set_expert_memory(2 * bytes, 0);  // this device cannot move it
  CHECK(still.code() == StatusCode::failed_precondition);
  CHECK(still.message().find("does not move") != std::string_view::npos);
}
