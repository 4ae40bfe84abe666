// Opening stores, what can fail while they open, and paging: the same bytes with fewer slots.
#include "moe/expert_store.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "store/store_faults.h"

using namespace moe;
using namespace moe::test;

TEST_CASE("the n-th read fails: an error that says where, and a clean retry",
          "[store][mission-93]") {
  Random random(test::seed());
  RandomModel model({small_layer(1), small_layer(3)}, random);
  FaultySource source(model.source());
  REQUIRE(ExpertStore::open(source).ok());
  const int64_t reads = source.calls;
  REQUIRE(reads > 50);
  for (int64_t n = 0; n < reads; ++n) {
    FaultyAllocator memory;
    source.calls = 0;
    source.fail_at = n;
    const Status status = ExpertStore::open(source, {.host = {.memory = &memory}}).status();
    REQUIRE(status.code() == StatusCode::data_loss);
    CHECK(status.place().layer >= 1);
    CHECK(status.place().file == "faulty");
    CHECK_FALSE(status.place().tensor.empty());
    CHECK(memory.outstanding == 0);
  }
  source.fail_at = -1;
  CHECK(ExpertStore::open(source).ok());
}

TEST_CASE("the n-th allocation fails: an error, and nothing leaks", "[store][mission-93]") {
  Random random(test::seed());
  RandomModel source({small_layer(1), small_layer(3)}, random);
  for (int64_t n = 0;; ++n) {
    FaultyAllocator memory;
    memory.fail_at = n;
    bool opened;
    {
      auto store = ExpertStore::open(source.source(), {.host = {.memory = &memory}});
      opened = store.ok();
      if (!opened) CHECK(store.status().code() == StatusCode::resource_exhausted);
    }
    CHECK(memory.outstanding == 0);
    if (opened) break;
    REQUIRE(n < 100);
  }
}

TEST_CASE("progress reaches the total, and may cancel", "[store]") {
  Random random(test::seed());
  RandomModel source({small_layer(0)}, random);
  struct Seen {
    int64_t done = 0, total = 0;
    int64_t stop_after = 1 << 30;
  } seen;
  const Progress progress = [](void* argument, int64_t done, int64_t total) {
    auto& s = *static_cast<Seen*>(argument);
    s.done = done;
    s.total = total;
    return --s.stop_after > 0;
  };
  ExpertStoreOptions options;
  options.progress = progress;
  options.progress_argument = &seen;
  REQUIRE(ExpertStore::open(source.source(), options).ok());
  CHECK(seen.done == seen.total);
  CHECK(seen.total > 0);
  seen.stop_after = 3;
  CHECK(ExpertStore::open(source.source(), options).status().code() == StatusCode::cancelled);
}

TEST_CASE("layers are chosen by the checkpoint's index", "[store]") {
  Random random(test::seed());
  RandomModel source({small_layer(1), small_layer(3), small_layer(5)}, random);
  ExpertStoreOptions options;
  options.layers = {5, 1};
  auto store = ExpertStore::open(source.source(), options);
  REQUIRE(store.ok());
  REQUIRE(store->layers().size() == 2);
  CHECK(store->layers()[1].layer == 5);
  CHECK(store->health(5, 7)->state == CopyState::ready);
  CHECK(store->health(5, 8).status().code() == StatusCode::invalid_argument);
  CHECK(store->health(3, 0).status().code() == StatusCode::invalid_argument);
  options.layers = {2};
  const Status missing = ExpertStore::open(source.source(), options).status();
  CHECK(missing.code() == StatusCode::invalid_argument);
  CHECK(missing.place().layer == 2);
}

TEST_CASE("paging gives the resident model's bytes at every budget",
          "[store][mission-81][mission-83]") {
  Random random(test::seed());
  RandomModel source({small_layer(0), small_layer(1), small_layer(2)}, random);
  auto resident = Model::create(source.source());
  REQUIRE(resident.ok());
  for (int64_t slots = 1; slots <= 24; slots += slots < 6 ? 1 : 6) {
    for (std::string_view policy : {"lru", "lfu", "llru", "lru-per-layer"}) {
      CAPTURE(slots, policy);
      FaultyAllocator memory;
      {
        ModelOptions options;
        options.expert_memory = memory_for(slots, 3);
        options.eviction = policy;
        options.host.memory = &memory;
        auto paged = Model::create(source.source(), options);
        INFO(paged.status().message());
        REQUIRE(paged.ok());
        for (int round = 0; round < 12; ++round) {
          const auto layer = static_cast<int32_t>(round % 3);
          Rows hidden(random, random.one_of({1, 2, 9, 40}), 24, DType::f32);
          const Forwarded wanted = forward(*resident, layer, hidden);
          const Forwarded got = forward(*paged, layer, hidden);
          INFO(got.status.message());
          REQUIRE(got.status.ok());
          REQUIRE(std::memcmp(got.out.data(), wanted.out.data(), got.out.size() * 4) == 0);
        }
        const ExpertStoreStats stats = paged->store().stats();
        CHECK(stats.capacity == slots);
        CHECK(stats.ready <= slots);
        CHECK(stats.pool_bytes <= options.expert_memory + kSpare * stats.slot_bytes);
        if (slots < 24) CHECK(stats.paging.misses > 0);
      }
      CHECK(memory.outstanding == 0);
    }
  }
}

TEST_CASE("too little memory is refused with the least that works", "[store][mission-89]") {
  Random random(test::seed());
  RandomModel source({small_layer(0), small_layer(1)}, random);
  FaultyAllocator memory;
  ExpertStoreOptions options;
  options.host.memory = &memory;
  options.expert_memory = memory_for(1, 2) - 64;
  const Status status = ExpertStore::open(source.source(), options).status();
  CHECK(status.code() == StatusCode::resource_exhausted);
  INFO(status.message());
  CHECK(status.message().find(std::to_string(options.expert_memory)) != std::string_view::npos);
  CHECK(status.message().find(std::to_string(memory_for(1, 2))) != std::string_view::npos);
  CHECK(memory.outstanding == 0);
}

TEST_CASE("a failing read fails that forward alone", "[store][mission-92][mission-93]") {
  Random random(test::seed());
  RandomModel model({small_layer(0)}, random);
  FaultySource source(model.source());
  auto resident = Model::create(model.source());
  FaultyAllocator memory;
  ModelOptions options;
  options.expert_memory = memory_for(3, 1);
  options.host.memory = &memory;
  auto paged = Model::create(source, options);
  REQUIRE(paged.ok());
  int failed = 0;
  for (int round = 0; round < 200; ++round) {
    Rows hidden(random, random.one_of({1, 3, 20}), 24, DType::f32);
    source.for_ever = round % 4 == 0;
    source.fail_at = round % 2 == 0 ? source.calls + random.between(0, 6) : -1;
    const Forwarded got = forward(*paged, 0, hidden);
    if (!got.status.ok()) {
      ++failed;
      REQUIRE(got.status.code() == StatusCode::data_loss);
      CHECK(got.status.place().expert >= 0);
      CHECK(paged->store().health(0, got.status.place().expert)->state == CopyState::failed);
      source.fail_at = -1;  // the disk recovers: the same call succeeds
    }
    const Forwarded wanted = forward(*resident, 0, hidden);
    source.fail_at = -1;
    const Forwarded again = forward(*paged, 0, hidden);
    REQUIRE(again.status.ok());
    REQUIRE(std::memcmp(again.out.data(), wanted.out.data(), wanted.out.size() * 4) == 0);
    CHECK(paged->store().stats().ready <= 3);
  }
  CHECK(failed > 10);
  CHECK(paged->store().stats().paging.load_errors >= failed);
}

TEST_CASE("several threads page at once", "[store][mission-81][mission-137]") {
  Random random(test::seed());
  RandomModel source({small_layer(0), small_layer(1)}, random);
  auto resident = Model::create(source.source());
  FaultyAllocator memory;
  ModelOptions options;
  options.expert_memory = memory_for(4, 2);
  options.host.memory = &memory;
  auto paged = Model::create(source.source(), options);
  REQUIRE(paged.ok());
  std::vector<Rows> inputs;
  std::vector<std::vector<float>> wanted;
  for (int i = 0; i < 8; ++i) {
    inputs.emplace_back(random, 1 + i * 3, 24, DType::f32);
    wanted.push_back(forward(*resident, i % 2, inputs.back()).out);
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        const size_t which = static_cast<size_t>(t + i) % inputs.size();
        const Forwarded got = forward(*paged, static_cast<int32_t>(which % 2), inputs[which]);
        wrong += !got.status.ok() || got.out != wanted[which];
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(paged->store().stats().paging.evictions > 0);
}

TEST_CASE("experts are quantised while they load, on request", "[store][mission-46]") {
  Random random(moe::test::seed());
  LayerSpec layer = small_layer(0);
  layer.expert.hidden = 96;
  layer.expert.intermediate = 64;
  layer.shared.reset();
  const RandomModel weights({layer}, random);
  const int64_t rows = 9;
  const Rows hidden(random, rows, 96, DType::f32);
  const auto forward = [&](std::optional<Format> format, size_t* bytes) {
    auto model = Model::create(weights.source(), {.format = format});
    INFO(model.status().message());
    REQUIRE(model.ok());
    *bytes = model->store().stats().slot_bytes;
    std::vector<float> out(rows * 96);
    REQUIRE(model->forward(0, hidden.view(), {out.data(), DType::f32, {rows, 96}}).ok());
    return out;
  };
  size_t whole = 0, eight = 0, four = 0;
  const auto exact = forward(std::nullopt, &whole);
  const auto error = [&](const std::vector<float>& out) {
    double off = 0, norm = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      off += std::pow(out[i] - exact[i], 2);
      norm += std::pow(exact[i], 2);
    }
    return std::sqrt(off / norm);
  };
  const double int8 = error(forward(Format{FormatKind::int8, 32, DType::bf16}, &eight));
  const double int4 = error(forward(Format{FormatKind::int4, 32, DType::bf16}, &four));
  INFO("int8 " << int8 << ", int4 " << int4);
  CHECK(int8 < 0.03);
  CHECK(int4 > int8);
  CHECK(int4 < 0.3);
  CHECK(four < eight);
  CHECK(eight * 3 < whole);  // of f32
  const auto refused = Model::create(weights.source(), {.format = Format{FormatKind::mxfp4, 32}});
  CHECK(refused.status().code() == StatusCode::unimplemented);
}
