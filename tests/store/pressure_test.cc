// A budget that moves, a pool that thrashes, bytes that change in a slot, a disk that hangs:
// forwards go on, and the host is told.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <thread>

#include "store/store_faults.h"
#include "store/store_impl.h"

using namespace moe;
using namespace moe::test;

namespace {

const std::vector<LayerSpec> kLayers = {small_layer(0), small_layer(1)};

struct World {
  World(Random& random, size_t expert_memory)
      : weights(kLayers, random), faulty(weights.source()), hidden(random, 17, 24, DType::f32) {
    auto all = Model::create(weights.source());
    REQUIRE_OK(all.status());
    answers.emplace(*std::move(all));
    ModelOptions options;
    options.expert_memory = expert_memory;
    options.host.memory = &memory;
    options.events = &events;
    auto opened = Model::create(faulty, options);
    REQUIRE_OK(opened.status());
    model.emplace(*std::move(opened));
  }
  ExpertStore& store() { return model->store(); }
  ExpertStore::Impl& impl() { return *store().impl(); }
  void require_same() {
    for (const int32_t layer : {0, 1}) {
      const Forwarded got = forward(*model, layer, hidden),
                      wanted = forward(*answers, layer, hidden);
      REQUIRE_OK(got.status);
      REQUIRE(got.out == wanted.out);
    }
  }
  // One bit of the ready copy's slot.
  bool flip(Random& random, int32_t layer, int32_t expert) {
    const StoreLayer& l = *impl().find(layer);
    const auto copies = store().copies(layer, expert);
    REQUIRE_OK(copies.status());
    for (const ExpertCopyInfo& copy : *copies) {
      if (copy.state != CopyState::ready) continue;
      const Compute& compute = impl().compute_of(l, expert);
      std::byte* slot = impl().classes[compute.slot_class].pool->address(copy.slot);
      const auto bit = random.between(0, static_cast<int64_t>(compute.layout.bytes) * 8 - 1);
      slot[bit / 8] ^= std::byte{1} << (bit % 8);
      return true;
    }
    return false;
  }
  // The batch of one layer goes to `experts`, one row each.
  Status use(int32_t layer, std::vector<int32_t> experts, int64_t deadline_ns = 0) {
    const auto rows = static_cast<int64_t>(experts.size());
    std::vector<float> weights_of(experts.size(), 1);
    const Routing routing{rows, 1, experts.data(), weights_of.data()};
    std::vector<float> out(experts.size() * 24);
    TensorView in = hidden.view();
    in.shape[0] = rows;
    return model->forward(
        layer, in, {out.data(), DType::f32, {rows, 24}},
        {.top_k = 1, .routing_in = &routing, .skip_shared = true, .deadline_ns = deadline_ns});
  }

  RandomModel weights;
  FaultySource faulty;
  FaultyAllocator memory;
  Events events;
  Rows hidden;
  std::optional<Model> answers, model;
};

}  // namespace

TEST_CASE("the budget moves down and up while forwards go on", "[store][mission-89]") {
  Random random(test::seed());
  World world(random, 0);
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::vector<float>> wanted;
  for (const int32_t layer : {0, 1})
    wanted.push_back(forward(*world.answers, layer, world.hidden).out);
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t)
    threads.emplace_back([&, t] {
      for (int32_t i = t; !stop; ++i) {
        const Forwarded got = forward(*world.model, i % 2, world.hidden);
        wrong += !got.status.ok() || got.out != wanted[static_cast<size_t>(i % 2)];
      }
    });
  Status status;
  for (int round = 0; round < 20 && status.ok(); ++round) {
    const int64_t slots = random.one_of({1, 2, 5, 9, 13, 0});
    const size_t bytes = slots == 0 ? 0 : memory_for(slots, 2);
    status = world.store().set_expert_memory(bytes);
    const ExpertStoreStats stats = world.store().stats();
    CHECK(stats.capacity == (slots == 0 ? 16 : slots));
    CHECK(stats.ready <= stats.capacity);
    if (slots > 0) CHECK(stats.pool_bytes <= bytes + kSpare * stats.slot_bytes);
    const Status refused = world.store().set_expert_memory(memory_for(1, 2) - 64);
    CHECK(refused.code() == StatusCode::resource_exhausted);
    CHECK(refused.message().find(std::to_string(memory_for(1, 2))) != std::string_view::npos);
    CHECK(world.store().stats().capacity == stats.capacity);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  REQUIRE_OK(status);
  CHECK(wrong == 0);
  // What a small budget frees goes back to the system.
  REQUIRE_OK(world.store().set_expert_memory(0));
  for (int32_t e = 0; e < 8; ++e)
    for (const int32_t layer : {0, 1}) REQUIRE_OK(world.use(layer, {e}));
  const int64_t full = world.memory.outstanding;
  REQUIRE_OK(world.store().set_expert_memory(memory_for(2, 2)));
  CHECK(world.memory.outstanding <
        full - 10 * static_cast<int64_t>(world.store().stats().slot_bytes));
  CHECK(world.events.count(StoreEventKind::pressure) > 0);
  world.require_same();
}

TEST_CASE("a host hears when a pool thrashes, and when it ends", "[store][mission-88]") {
  Random random(test::seed());
  World world(random, memory_for(3, 2));
  // Four experts in turn through three slots: LRU misses every time.
  for (int i = 0; i < 400; ++i) REQUIRE_OK(world.use(0, {i % 4}));
  CHECK(world.store().stats().thrashing);
  CHECK(world.events.count(StoreEventKind::thrash_began) == 1);
  CHECK(world.events.count(StoreEventKind::thrash_ended) == 0);
  for (int i = 0; i < 400; ++i) REQUIRE_OK(world.use(0, {i % 3}));
  CHECK_FALSE(world.store().stats().thrashing);
  CHECK(world.events.count(StoreEventKind::thrash_began) == 1);
  CHECK(world.events.count(StoreEventKind::thrash_ended) == 1);
}

TEST_CASE("pool statistics add up, and every copy can be asked for", "[store][mission-92]") {
  Random random(test::seed());
  World world(random, memory_for(5, 2));
  const RandomModel newer(kLayers, random);
  const auto check = [&] {
    const ExpertStoreStats stats = world.store().stats();
    CHECK(stats.serving_bytes + stats.kept_bytes + stats.moving_bytes + stats.free_bytes ==
          stats.pool_bytes);
    CHECK(stats.used_bytes + stats.free_bytes == stats.pool_bytes);
    CHECK(stats.moving_bytes == 0);
    int64_t ready = 0, serving = 0;
    for (const int32_t layer : {0, 1})
      for (int32_t e = kSharedExpert; e < 8; ++e) {
        const auto copies = world.store().copies(layer, e);
        REQUIRE_OK(copies.status());
        for (const ExpertCopyInfo& copy : *copies) {
          CHECK(copy.state == CopyState::ready);
          CHECK(copy.digest != 0);
          CHECK(copy.leases == 0);
          ++ready;
          serving += copy.serving && e != kSharedExpert;
        }
        CHECK(world.store().health(layer, e)->state ==
              (copies->empty() ? CopyState::empty : CopyState::ready));
      }
    CHECK(static_cast<size_t>(ready) == static_cast<size_t>(world.impl().classes[0].pool->used() +
                                                            world.impl().classes[1].pool->used()));
    CHECK(serving == stats.ready);
  };
  check();
  world.require_same();
  check();
  REQUIRE_OK(world.store().reload(newer.source()).status());
  for (int32_t e = 0; e < 8; ++e) REQUIRE_OK(world.use(e % 2, {e}));
  check();
  CHECK(world.store().copies(0, 8).status().code() == StatusCode::invalid_argument);
  CHECK(world.store().copies(2, 0).status().code() == StatusCode::invalid_argument);
}

TEST_CASE("a scrub finds a flipped bit, reloads, reports", "[store][mission-95][mission-96]") {
  Random random(test::seed());
  for (const size_t budget : {size_t{0}, memory_for(16, 2), memory_for(6, 2)}) {
    World world(random, budget);
    world.require_same();
    const auto clean = world.store().scrub();
    REQUIRE_OK(clean.status());
    CHECK(clean->found == 0);
    CHECK(clean->wrapped);
    CHECK(clean->copies >= 2 + (budget == memory_for(6, 2) ? 1 : 16));
    size_t flipped = 0;
    for (const int32_t layer : {0, 1})
      for (const int32_t expert : {kSharedExpert, 0, 3, 7})
        flipped += world.flip(random, layer, expert);
    REQUIRE(flipped >= 2);
    const auto dirty = world.store().scrub();
    REQUIRE_OK(dirty.status());
    CHECK(dirty->found == static_cast<int64_t>(flipped));
    CHECK(dirty->repaired == dirty->found);
    CHECK(world.events.count(StoreEventKind::scrub_found) == flipped);
    CHECK(world.events.count(StoreEventKind::scrub_repaired) == flipped);
    CHECK(world.store().stats().scrub.found == dirty->found);
    world.require_same();
    CHECK(world.store().scrub()->found == 0);

    // None can be read: the expert serves no more, until it can be read again.
    REQUIRE_OK(world.use(0, {2}));
    world.faulty.fail_at = 0;
    world.faulty.for_ever = true;
    int32_t victim = -1;
    for (int32_t e = 0; e < 8 && victim < 0; ++e)
      if (world.flip(random, 0, e)) victim = e;
    REQUIRE(victim >= 0);
    const auto stuck = world.store().scrub();
    REQUIRE_OK(stuck.status());
    CHECK(stuck->found == 1);
    CHECK(stuck->repaired == 0);
    const auto failed = world.events.of(StoreEventKind::scrub_failed);
    REQUIRE(failed.size() == 1);
    CHECK(failed[0].expert == victim);
    CHECK(failed[0].status.code() == StatusCode::data_loss);
    CHECK(world.store().health(0, victim)->state == CopyState::failed);
    CHECK(world.use(0, {victim}).code() == StatusCode::data_loss);
    world.faulty.fail_at = -1;
    REQUIRE_OK(world.use(0, {victim}));
    CHECK(world.store().health(0, victim)->state == CopyState::ready);
    world.require_same();
  }
}

TEST_CASE("a repair needs no free slot", "[store][mission-96]") {
  Random random(test::seed());
  World world(random, memory_for(16, 2));
  world.require_same();
  // What rollback() would return to has all slots that are left.
  const SlotPool& pool = *world.impl().classes[world.impl().layers[0]->routed.slot_class].pool;
  ReloadOptions some;
  for (int32_t e = 0; e < pool.free(); ++e) some.experts.push_back({0, e});
  REQUIRE_OK(world.store().reload(world.weights.source(), some).status());
  REQUIRE(pool.free() == 0);
  for (const int32_t expert : {0, 5, kSharedExpert}) REQUIRE(world.flip(random, 1, expert));
  const auto report = world.store().scrub();
  REQUIRE_OK(report.status());
  CHECK(report->found == 3);
  CHECK(report->repaired == report->found);
  CHECK(world.store().stats().ready == 16);
  world.require_same();
}

TEST_CASE("the store scrubs by itself while forwards go on", "[store][mission-96]") {
  Random random(test::seed());
  World base(random, 0);
  ModelOptions options;
  options.scrub_bytes_per_second = int64_t{1} << 30;
  Events events;
  options.events = &events;
  auto model = Model::create(base.weights.source(), options);
  REQUIRE_OK(model.status());
  base.model.emplace(*std::move(model));
  REQUIRE(base.flip(random, 1, 4));
  REQUIRE(base.flip(random, 0, kSharedExpert));
  for (int i = 0; i < 2000 && events.count(StoreEventKind::scrub_repaired) < 2; ++i) {
    REQUIRE(forward(*base.model, i % 2, base.hidden).status.ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  CHECK(events.count(StoreEventKind::scrub_found) == 2);
  CHECK(events.count(StoreEventKind::scrub_repaired) == 2);
  base.require_same();
  const auto beats = base.store().heartbeats();
  CHECK(std::any_of(beats.begin(), beats.end(),
                    [](const Heartbeat& b) { return b.name == "scrub" && b.jobs > 0; }));
}

TEST_CASE("a disk that hangs is seen, and what it brings late is used", "[store][mission-93]") {
  Random random(test::seed());
  const RandomModel weights(kLayers, random);
  // Reads wait while it is closed.
  class Door final : public WeightSource {
   public:
    explicit Door(const WeightSource& inner) : inner_(inner) {}
    const std::vector<LayerSpec>& layers() const noexcept override { return inner_.layers(); }
    Result<TensorShape> describe(const WeightId& id) const override { return inner_.describe(id); }
    Status read(const WeightId& id, const MutableTensorView& out) const override {
      std::unique_lock lock(mutex_);
      opened_.wait(lock, [&] { return open_; });
      if (broken_) return Status(StatusCode::data_loss, "the disk came back without its data");
      return inner_.read(id, out);
    }
    std::string_view name() const noexcept override { return "door"; }
    void set(bool open, bool broken = false) {
      std::lock_guard lock(mutex_);
      open_ = open;
      broken_ = broken;
      opened_.notify_all();
    }

   private:
    const WeightSource& inner_;
    mutable std::mutex mutex_;
    mutable std::condition_variable opened_;
    bool open_ = true, broken_ = false;
  } door(weights.source());
  World world(random, 0);
  Events events;
  ModelOptions options;
  options.expert_memory = memory_for(3, 2);
  options.host.memory = &world.memory;
  options.events = &events;
  world.answers.reset();
  world.model.reset();
  auto answers = Model::create(weights.source());
  auto model = Model::create(door, options);
  REQUIRE_OK(answers.status());
  REQUIRE_OK(model.status());
  world.answers.emplace(*std::move(answers));
  world.model.emplace(*std::move(model));

  for (const bool broken : {false, true}) {
    door.set(false);
    const int32_t expert = broken ? 6 : 5;
    const Status late = world.use(0, {expert}, 20'000'000);
    CHECK(late.code() == StatusCode::deadline_exceeded);
    CHECK(events.count(StoreEventKind::background_late) == (broken ? 2 : 1));
    const auto beats = world.store().heartbeats();
    CHECK(std::any_of(beats.begin(), beats.end(),
                      [](const Heartbeat& b) { return b.busy && b.silent_ns > 10'000'000; }));
    door.set(true, broken);
    for (int i = 0; i < 1000; ++i) {
      const CopyState state = world.store().health(0, expert)->state;
      if (state == (broken ? CopyState::failed : CopyState::ready)) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    CHECK(world.store().health(0, expert)->state ==
          (broken ? CopyState::failed : CopyState::ready));
    door.set(true);
    // Three slots are there again, whoever needs them.
    REQUIRE_OK(world.use(0, {0, 1, 2}));
    REQUIRE_OK(world.use(0, {expert}));
    CHECK(world.store().stats().ready == 3);
    world.require_same();
  }
}
