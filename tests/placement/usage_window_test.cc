// What a running model records: against brute force, and from many threads.
#include <map>
#include <thread>

#include "helpers.h"

using namespace moe;
using namespace moe::test;

TEST_CASE("k-subset counts of a window equal brute force", "[placement][mission-72]") {
  placement::Random random(seed());
  const std::vector<LayerExperts> layers = {{3, 10}, {7, 12}};
  UsageWindow window = must(UsageWindow::create(layers, 3, {.steps = 4, .keep_steps = true}));
  std::map<int32_t, std::map<std::vector<int32_t>, double>> sets;
  std::map<int32_t, std::vector<std::vector<float>>> steps;
  for (int step = 0; step < 3; ++step)
    for (const LayerExperts& layer : layers) {
      std::vector<int32_t> ids;
      steps[layer.layer].emplace_back(layer.experts, 0.0f);
      for (int t = 0; t < 30; ++t) {
        const auto a = static_cast<int32_t>(random.below(4));
        std::vector<int32_t> set = {a + 5, a, 9};
        ids.insert(ids.end(), set.begin(), set.end());
        for (int32_t e : set) ++steps[layer.layer].back()[e];
        std::sort(set.begin(), set.end());
        ++sets[layer.layer][set];
      }
      REQUIRE(window.record(layer.layer, ids).ok());
    }
  const UsageTrace usage = window.snapshot();
  REQUIRE(validate(usage).ok());
  CHECK(usage.top_k == 3);
  REQUIRE(usage.layers.size() == 2);
  for (const LayerUsage& u : usage.layers) {
    auto& wanted = sets[u.layer];
    REQUIRE(u.sets.size() == static_cast<int64_t>(wanted.size()));
    auto next = wanted.begin();  // both ascend
    for (int64_t i = 0; i < u.sets.size(); ++i, ++next) {
      CHECK(std::ranges::equal(next->first, u.sets[i]));
      CHECK(next->second == u.sets.counts[i]);
    }
    CHECK(window.steps(u.layer) == 3);
    REQUIRE(u.steps.size() == 3u * u.experts());
    for (int32_t e = 0; e < u.experts(); ++e) {
      double sum = 0;
      for (size_t s = 0; s < 3; ++s) {
        sum += steps[u.layer][s][e];
        CHECK(u.steps[s * u.experts() + e] == steps[u.layer][s][e]);
      }
      CHECK(u.tokens[e] == sum);
    }
  }
}

TEST_CASE("a sliding window forgets its oldest step", "[placement][mission-65]") {
  const std::vector<LayerExperts> layers = {{0, 2}, {1, 3}};
  UsageWindow window = must(UsageWindow::create(layers, 1, {.steps = 3, .keep_steps = true}));
  for (int64_t step = 1; step <= 5; ++step)
    REQUIRE(window.record_counts(0, std::vector<int64_t>{step, 10 * step}).ok());
  REQUIRE(window.record(1, std::vector<int32_t>{2}).ok());
  REQUIRE(window.record(1, {}).ok());  // no rows, no step
  CHECK(window.steps(0) == 3);
  CHECK(window.steps(1) == 1);
  CHECK(window.steps(2) == 0);
  const UsageTrace usage = window.snapshot();
  CHECK(usage.layers[0].tokens == std::vector<double>{3 + 4 + 5, 30 + 40 + 50});
  CHECK(usage.layers[0].steps == std::vector<float>{3, 30, 4, 40, 5, 50});
  CHECK(usage.layers[1].tokens == std::vector<double>{0, 0, 1});
}

TEST_CASE("a window counts what has no expert as none, and refuses the rest whole", "[placement]") {
  const std::vector<LayerExperts> layers = {{4, 3}};
  UsageWindow window = must(UsageWindow::create(layers, 2));
  REQUIRE(window.record(4, std::vector<int32_t>{2, 0, -1, 1, 3, 0, -1, -1}).ok());
  REQUIRE(window.record(4, std::vector<int32_t>{1, 1}, 1).ok());  // fewer per token
  const LayerUsage usage = window.snapshot().layers[0];
  CHECK(usage.tokens == std::vector<double>{2, 3, 1});
  CHECK(usage.sets.experts == std::vector<int32_t>{0, 0, 2, 1});
  CHECK(usage.sets.counts == std::vector<double>{1, 1, 3});
  const auto refused = [&](const Status& status, const char* word) {
    INFO(status.message());
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message().find(word) != status.message().npos);
  };
  refused(window.record(5, std::vector<int32_t>{0, 1}), "no layer 5");
  refused(window.record(4, std::vector<int32_t>{0}), "multiple of top_k 2");
  refused(window.record(4, std::vector<int32_t>{0, -2}), "-2");
  refused(window.record(4, std::vector<int32_t>{0, 1, 2}, 3), "up to 2");
  refused(window.record_counts(4, std::vector<int64_t>{1, 2}), "2 counts for 3");
  refused(window.record_counts(4, std::vector<int64_t>{1, -2, 0}), "-2 tokens");
  refused(UsageWindow::create({}, 1).status(), "no layers");
  refused(UsageWindow::create(layers, 0).status(), "top_k 0");
  refused(UsageWindow::create(layers, 1, {.steps = 0}).status(), "0 steps");
  refused(UsageWindow::create(layers, 1, {.coverage = 0}).status(), "coverage");
  refused(UsageWindow::create(std::vector<LayerExperts>{{4, 3}, {4, 3}}, 1).status(), "twice");
  CHECK(window.snapshot().layers[0].tokens == usage.tokens);
}

TEST_CASE("sets fade, stay bounded, and keep the frequent ones", "[placement][mission-77]") {
  placement::Random random(seed());
  const std::vector<LayerExperts> layers = {{0, 64}};
  UsageWindow window = must(UsageWindow::create(layers, 4, {.steps = 100000, .max_sets = 100}));
  std::vector<int32_t> ids;
  for (int token = 0; token < 20000; ++token) {
    std::vector<int32_t> set = {0, 1, 2, token % 4 == 0 ? 3 : 4};  // a quarter, a quarter,
    if (token % 2)                                                 // and a half that is all new
      for (int32_t& e : set) e = static_cast<int32_t>(5 + random.below(59));
    ids.insert(ids.end(), set.begin(), set.end());
  }
  REQUIRE(window.record(0, ids).ok());
  const ExpertSets sets = window.snapshot().layers[0].sets;
  CHECK(sets.size() <= 100);
  const ExpertSets top = prune(sets, 1);  // most frequent first
  CHECK(top[0][3] + top[1][3] == 7);
  CHECK(top.counts[1] > 0.9 * top.counts[0]);
  CHECK(top.counts[2] < 0.2 * top.counts[1]);

  UsageWindow fading = must(UsageWindow::create(layers, 1, {.steps = 2, .coverage = 0.8}));
  for (int32_t e : {7, 7, 7, 9}) REQUIRE(fading.record(0, std::vector<int32_t>{e, e, e}).ok());
  // 7: 6 halved to 3, 3 more, halved again to 3; 9: 3 halved to 1.5. 80 % need both.
  CHECK(fading.snapshot().layers[0].sets.counts == std::vector<double>{3, 1.5});
  UsageWindow one = must(UsageWindow::create(layers, 1, {.max_sets = 1}));
  REQUIRE(one.record(0, std::vector<int32_t>{1, 1, 1, 1, 2}).ok());
  CHECK(one.snapshot().layers[0].sets.experts == std::vector<int32_t>{2});
  UsageWindow none = must(UsageWindow::create(layers, 1, {.max_sets = 0}));
  REQUIRE(none.record(0, std::vector<int32_t>{1}).ok());
  CHECK(none.snapshot().layers[0].sets.size() == 0);
}

TEST_CASE("threads may share a window; nothing is lost", "[placement]") {
  const std::vector<LayerExperts> layers = {{0, 8}, {1, 8}};
  UsageWindow window = must(UsageWindow::create(layers, 2, {.steps = 1000}));
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) (void)window.record(i % 2, std::vector<int32_t>{t, 7});
    });
  for (int i = 0; i < 20; ++i) CHECK(validate(window.snapshot()).ok());
  for (std::thread& thread : threads) thread.join();
  for (const LayerUsage& layer : window.snapshot().layers) {
    CHECK(layer.tokens == std::vector<double>{100, 100, 100, 0, 0, 0, 0, 300});
    CHECK(layer.sets.counts == std::vector<double>{100, 100, 100});
    CHECK(window.steps(layer.layer) == 300);
  }
}
