// Two models in one process: each keeps to its own budget, and neither notices the other.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "model/random_model.h"
#include "moe/model.h"

using namespace moe;
using moe::test::Random;
using moe::test::RandomModel;
using moe::test::Rows;

namespace {

// Host memory that knows the most that was ever out.
class MeteredMemory final : public Allocator {
 public:
  void* allocate(size_t bytes, size_t alignment) noexcept override {
    const size_t now = out += bytes;
    for (size_t seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
    }
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  }
  void deallocate(void* memory, size_t bytes, size_t) noexcept override {
    out -= bytes;
    std::free(memory);
  }
  std::atomic<size_t> out{0}, most{0};
};

LayerSpec layer_spec(int32_t layer, int64_t intermediate) {
  LayerSpec spec;
  spec.layer = layer;
  spec.router.num_experts = 12;
  spec.router.top_k = 2;
  spec.expert = {.hidden = 64, .intermediate = intermediate};
  spec.expert.format = {FormatKind::f32, 0};
  return spec;
}

// A model that pages, what a resident one computes, and its own memory.
struct Paged {
  Paged(Random& random, int64_t intermediate, int64_t slots, const char* policy)
      : weights({layer_spec(0, intermediate), layer_spec(1, intermediate)}, random) {
    auto resident = Model::create(weights.source());
    REQUIRE(resident.ok());
    for (int i = 0; i < 6; ++i) {
      inputs.emplace_back(random, 1 + 2 * i, 64, DType::f32);
      wanted.push_back(forward(*resident, i));
    }
    slot_bytes = resident->store().stats().slot_bytes;
    constexpr int64_t kSpare = 2;
    options.expert_memory = slot_bytes * static_cast<size_t>(slots + kSpare);
    options.eviction = policy;
    options.host.memory = &memory;
    auto made = Model::create(weights.source(), options);
    INFO(made.status().message());
    REQUIRE(made.ok());
    model = std::make_unique<Model>(*std::move(made));
  }

  std::vector<float> forward(Model& by, int i) {
    const Rows& rows = inputs[static_cast<size_t>(i)];
    std::vector<float> out(static_cast<size_t>(rows.shape.elements()), -1);
    const Status status = by.forward(i % 2, rows.view(), {out.data(), DType::f32, rows.shape});
    return status.ok() ? out : std::vector<float>();
  }
  // How many of `rounds` forwards were wrong.
  int run(int rounds) {
    int wrong = 0;
    for (int round = 0; round < rounds; ++round)
      wrong += forward(*model, round % 6) != wanted[static_cast<size_t>(round % 6)];
    return wrong;
  }

  RandomModel weights;
  std::vector<Rows> inputs;
  std::vector<std::vector<float>> wanted;
  size_t slot_bytes = 0;
  MeteredMemory memory;
  ModelOptions options;
  std::unique_ptr<Model> model;
};

}  // namespace

TEST_CASE("two models in one process keep to their budgets and do not notice each other",
          "[store][mission-83]") {
  Random random(test::seed());
  Paged small(random, 40, 5, "lru"), large(random, 96, 7, "lfu");

  // What one does alone is what it does beside the other.
  CHECK(small.run(12) == 0);
  const PagingStats alone = small.model->store().stats().paging;
  CHECK(large.run(12) == 0);
  CHECK(small.model->store().stats().paging.misses == alone.misses);
  CHECK(small.model->store().stats().paging.hits == alone.hits);

  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (Paged* paged : {&small, &large, &small, &large})
    threads.emplace_back([&wrong, paged] { wrong += paged->run(60); });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);

  for (Paged* paged : {&small, &large}) {
    const ExpertStoreStats stats = paged->model->store().stats();
    CHECK(stats.paging.misses > 0);
    CHECK(stats.pool_bytes <= paged->options.expert_memory);
    CHECK(stats.ready <= stats.capacity);
    // The allocator has the workspaces of forwards beside the slots.
    auto workspace = Context::workspace_bytes(*paged->model, 11);
    REQUIRE(workspace.ok());
    CHECK(paged->memory.most <= paged->options.expert_memory + 3 * *workspace);
  }

  // One goes; the other's memory and bytes stay as they are.
  const size_t before = large.memory.out;
  small.model.reset();
  CHECK(small.memory.out == 0);
  CHECK(large.memory.out == before);
  CHECK(large.run(12) == 0);
}

TEST_CASE("two models over one store share its weights", "[store][mission-37]") {
  Random random(test::seed());
  const RandomModel weights({layer_spec(0, 128), layer_spec(1, 128)}, random);
  MeteredMemory memory;
  ExpertStoreOptions options;
  options.host.memory = &memory;
  auto store = ExpertStore::open(weights.source(), options);
  REQUIRE(store.ok());
  const size_t held = memory.out;
  auto first = Model::create(*store, {.host = {.memory = &memory}});
  auto second = Model::create(*store, {.host = {.memory = &memory}});
  REQUIRE((first.ok() && second.ok()));
  const Rows row(random, 1, 64, DType::f32);
  std::vector<float> out(64), other(64);
  REQUIRE(first->forward(1, row.view(), {out.data(), DType::f32, row.shape}).ok());
  const size_t one = memory.out;
  REQUIRE(second->forward(1, row.view(), {other.data(), DType::f32, row.shape}).ok());
  CHECK(out == other);
  CHECK(100 * (memory.out - one) < held);
}
