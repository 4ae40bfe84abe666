// Prefetching while a model runs: the same bytes, switched off where it loses, left on where it
// saves. Time passes while experts are read and at no other time, and a host's own work between two
// layers lasts until what was begun meanwhile is there: so the governor's judgement is the same
// each time.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "store/store_faults.h"
#include "store/store_impl.h"

using namespace moe;
using namespace moe::test;

namespace {

constexpr int32_t kLayers = 4, kExperts = 16;
constexpr int64_t kReadNs = 400'000;  // of one expert

std::vector<LayerSpec> layers() {
  std::vector<LayerSpec> all;
  for (int32_t l = 0; l < kLayers; ++l) all.push_back(small_layer(l, kExperts));
  for (LayerSpec& spec : all) spec.shared.reset();
  return all;
}

class ReadingClock final : public Clock {
 public:
  int64_t now_ns() const noexcept override { return now.load(); }
  mutable std::atomic<int64_t> now{1};
};

class SlowSource final : public WeightSource {
 public:
  SlowSource(const WeightSource& inner, const ReadingClock& clock) : inner_(inner), clock_(clock) {}
  const std::vector<LayerSpec>& layers() const noexcept override { return inner_.layers(); }
  Result<TensorShape> describe(const WeightId& id) const override { return inner_.describe(id); }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    if (id.kind == WeightKind::down) clock_.now += kReadNs;
    return inner_.read(id, out);
  }
  std::string_view name() const noexcept override { return "slow"; }

 private:
  const WeightSource& inner_;
  const ReadingClock& clock_;
};

struct Run {
  PrefetchStats stats;
  PagingStats paging;
  bool same = true;
};

struct RunOptions {
  PrefetchKind kind = PrefetchKind::none;
  int64_t slots = 24;
  int steps = 0;  // tokens, through all layers
  int tokens_of_sequence = 1000;
};

// choice(token, layer) are the token's two experts; empty: the router's.
template <class Choice>
Run run(Random& random, const RunOptions& wanted, Choice choice) {
  const RandomModel weights(layers(), random);
  const ReadingClock clock;
  const SlowSource slow(weights.source(), clock);
  auto answers = Model::create(weights.source());
  ModelOptions options;
  options.expert_memory = memory_for(wanted.slots, 0);
  options.prefetch = wanted.kind;
  options.host.clock = &clock;
  auto model = Model::create(slow, options);
  REQUIRE_OK(answers.status());
  REQUIRE_OK(model.status());
  ExpertStore::Impl& store = *model->store().impl();
  if (store.prefetcher)
    store.prefetcher->governor = PrefetchGovernor({.window = 64, .pause = 100'000});
  const auto fetching = [&] {
    auto lock = store.locked();
    return store.prefetcher && store.prefetcher->pending;
  };
  Run result;
  const Rows hidden(random, 1, 24, DType::f32);
  for (int step = 0; step < wanted.steps; ++step) {
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      std::vector<int32_t> ids = choice(step, layer);
      std::vector<float> even(ids.size(), 0.5f);
      const Routing routing{1, 2, ids.data(), even.data()};
      const ForwardOptions forced{.routing_in = ids.empty() ? nullptr : &routing};
      const Forwarded got = forward(*model, layer, hidden, forced),
                      should = forward(*answers, layer, hidden, forced);
      REQUIRE_OK(got.status);
      result.same = result.same && got.out == should.out;
      while (fetching()) std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    if (step % wanted.tokens_of_sequence == wanted.tokens_of_sequence - 1)
      model->store().sequence_ended();
  }
  result.stats = model->store().stats().prefetch;
  result.paging = model->store().stats().paging;
  return result;
}

}  // namespace

TEST_CASE("prefetching stays on where it saves, with the same bytes", "[store][mission-87]") {
  Random random(test::seed());
  // Sequences of two tokens repeat one of two patterns. One has its slots, both have not: its first
  // layer says which one it is, and the other three can come early.
  std::vector<std::vector<int32_t>> pattern;
  for (int32_t i = 0; i < 2 * kLayers; ++i) {
    const int32_t half = i < kLayers ? 0 : kExperts / 2;
    const auto first = half + static_cast<int32_t>(random.between(0, kExperts / 2 - 2));
    pattern.push_back({first, first + 1});
  }
  const auto choice = [&](int step, int32_t layer) {
    return pattern[static_cast<size_t>((step / 2 % 2) * kLayers + layer)];
  };
  constexpr int kSteps = 120;
  const RunOptions options{PrefetchKind::activation, 10, kSteps, 2};
  const Run predicted = run(random, options, choice);
  RunOptions off = options;
  off.kind = PrefetchKind::none;
  const Run plain = run(random, off, choice);
  CHECK(predicted.same);
  CHECK(plain.same);
  const PrefetchStats& stats = predicted.stats;
  CAPTURE(stats.loads, stats.used, stats.saved_ns, stats.cost_ns, stats.won, stats.lost,
          predicted.paging.misses, plain.paging.misses);
  CHECK(stats.enabled);
  CHECK(stats.lost == 0);
  CHECK(stats.won == kSteps * kLayers / 64);
  // Both experts of three layers, in every sequence but those of the first of each pattern.
  CHECK(stats.loads >= (kSteps / 2 - 3) * 2 * (kLayers - 1));
  CHECK(stats.used > stats.loads * 9 / 10);
  CHECK(stats.saved_ns == stats.used * kReadNs);
  CHECK(stats.saved_ns > 10 * stats.cost_ns);
  CHECK(predicted.paging.misses + stats.used == plain.paging.misses);
}

TEST_CASE("the next layer's gate fetches whom it chooses", "[store][mission-87]") {
  Random random(test::seed());
  // Every layer sees the same row, so the gate is always right.
  const Run fetched = run(random, {PrefetchKind::next_gate, 24, 8},
                          [](int, int32_t) { return std::vector<int32_t>(); });
  CHECK(fetched.same);
  CAPTURE(fetched.stats.loads, fetched.stats.used);
  CHECK(fetched.stats.loads == 2 * (kLayers - 1));
  CHECK(fetched.stats.used == fetched.stats.loads);
  CHECK(fetched.stats.saved_ns == fetched.stats.used * kReadNs);
  CHECK(fetched.stats.cost_ns == 0);
  CHECK(fetched.paging.misses == 2);  // of the first layer
}

TEST_CASE("prefetching that loses is switched off, with the same bytes", "[store][mission-87]") {
  Random random(test::seed());
  // The gate guesses by the row, but the experts are random.
  const Run lost = run(random, {PrefetchKind::next_gate, 24, 120}, [&](int, int32_t) {
    const auto first = static_cast<int32_t>(random.between(0, kExperts - 1));
    return std::vector<int32_t>{
        first, static_cast<int32_t>((first + random.between(1, kExperts - 1)) % kExperts)};
  });
  CHECK(lost.same);
  CAPTURE(lost.stats.loads, lost.stats.used, lost.stats.saved_ns, lost.stats.cost_ns);
  CHECK(lost.stats.loads > 0);
  CHECK(lost.stats.lost > 0);
  CHECK(lost.stats.saved_ns < lost.stats.cost_ns);
  CHECK_FALSE(lost.stats.enabled);
}

namespace {

// Reads of one layer's experts wait for somebody who lets them through, one by one.
class GuardedSource final : public WeightSource {
 public:
  GuardedSource(const WeightSource& inner, int32_t guarded) : inner_(inner), guarded_(guarded) {}
  const std::vector<LayerSpec>& layers() const noexcept override { return inner_.layers(); }
  Result<TensorShape> describe(const WeightId& id) const override { return inner_.describe(id); }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    if (id.kind == WeightKind::gate) {
      std::unique_lock lock(mutex_);
      begun_.push_back({id.layer, id.expert});
      changed_.notify_all();
      changed_.wait(lock, [&] { return open_ || id.layer != guarded_ || passes_ > 0; });
      if (id.layer == guarded_) --passes_;
    }
    return inner_.read(id, out);
  }
  std::string_view name() const noexcept override { return "guarded"; }

  // Experts, in the order in which their reads began since open_all(false).
  std::vector<ExpertId> begun() const {
    std::lock_guard lock(mutex_);
    return begun_;
  }
  void wait_for(size_t reads) const {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return begun_.size() >= reads; });
  }
  void let_one() {
    std::lock_guard lock(mutex_);
    ++passes_;
    changed_.notify_all();
  }
  void open_all(bool open) {
    std::lock_guard lock(mutex_);
    open_ = open;
    passes_ = 0;
    begun_.clear();
    changed_.notify_all();
  }

 private:
  const WeightSource& inner_;
  const int32_t guarded_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable std::vector<ExpertId> begun_;
  mutable int passes_ = 0;
  bool open_ = true;
};

}  // namespace

TEST_CASE("a miss waits for one early read at most, and the governor counts it",
          "[store][mission-87]") {
  Random random(test::seed());
  const RandomModel weights(layers(), random);
  GuardedSource source(weights.source(), 1);
  const ReadingClock clock;
  ModelOptions options;
  options.expert_memory = memory_for(12, 0);
  options.prefetch = PrefetchKind::activation;
  options.host.clock = &clock;
  auto answers = Model::create(weights.source());
  auto model = Model::create(source, options);
  REQUIRE_OK(answers.status());
  REQUIRE_OK(model.status());
  ExpertStore::Impl& store = *model->store().impl();
  const Rows hidden(random, 1, 24, DType::f32);
  const auto use = [&](int32_t layer, std::vector<int32_t> ids) {
    std::vector<float> even(ids.size(), 0.5f);
    const Routing routing{1, 2, ids.data(), even.data()};
    const Forwarded got = forward(*model, layer, hidden, {.routing_in = &routing}),
                    should = forward(*answers, layer, hidden, {.routing_in = &routing});
    return got.status.ok() && got.out == should.out;
  };
  const auto idle = [&] {
    auto lock = store.locked();
    return !store.prefetcher->pending;
  };
  const auto sleep = [] { std::this_thread::sleep_for(std::chrono::microseconds(100)); };
  for (const int32_t missed : {0, 1}) {
    const std::vector<int32_t> guess = missed == 0 ? std::vector{3, 5, 7} : std::vector{11, 12, 13};
    CAPTURE(missed);
    source.open_all(false);
    const int64_t cost = model->store().stats().prefetch.cost_ns;
    store.prefetch(*store.find(1), guess, 0);
    source.wait_for(1);  // the first guess is being read, the others wait
    // A forward of another layer, or of the very one that was guessed: all of it, or in part.
    const std::vector<int32_t> wanted = missed == 0 ? std::vector{8, 9} : std::vector{10, 12};
    std::atomic<bool> right{false};
    std::thread miss([&] { right = use(missed, wanted); });
    while (store.gate.callers() < 2) sleep();
    constexpr int64_t kWaitNs = 1'234'567;
    clock.now += kWaitNs;
    source.let_one();
    source.wait_for(3);  // both of the miss begin, whatever is left of the guess
    const std::vector<ExpertId> begun = source.begun();
    CHECK(begun[0] == ExpertId{1, guess[0]});
    for (size_t i = 1; i < 3; ++i) {
      CHECK(begun[i].layer == missed);
      CHECK(std::count(wanted.begin(), wanted.end(), begun[i].expert) == 1);
    }
    for (int i = 0; i < 2; ++i) source.let_one();  // those of layer 1, if they are
    miss.join();
    CHECK(right);
    const size_t before = source.begun().size();
    source.open_all(true);
    while (!idle()) sleep();
    // A guess that the forward has overtaken is dropped.
    if (missed == 1) CHECK(before + source.begun().size() == 3);
    CHECK(use(2, {1, 2}));  // a step of the governor
    CHECK(model->store().stats().prefetch.cost_ns - cost == kWaitNs);
  }
}
