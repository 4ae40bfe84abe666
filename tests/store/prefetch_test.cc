// PredictedExpert by activation matrices, and the governor that judges whether it pays.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <random>

#include "catch.h"
#include "store/governor.h"
#include "store/predict_activation.h"
#include "store/prefetch_ledger.h"
#include "store/residency.h"
#include "store/trace_forwards.h"
#include "store/traces.h"

using namespace moe;

namespace {

using Rng = std::mt19937_64;
using Matrix = std::vector<std::vector<double>>;  // (layers, experts)

std::vector<LayerExperts> layers_of(int32_t layers, int32_t experts) {
  return test::empty_trace(layers, experts, 1).layers;
}

std::vector<int32_t> random_set(Rng& rng, int32_t experts, size_t size) {
  std::vector<int32_t> set(static_cast<size_t>(experts));
  for (size_t e = 0; e < set.size(); ++e) set[e] = static_cast<int32_t>(e);
  std::shuffle(set.begin(), set.end(), rng);
  set.resize(size);
  return set;
}

double mean_cosine(const Matrix& a, const Matrix& b) {
  double sum = 0;
  for (size_t l = 0; l < a.size(); ++l) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t e = 0; e < a[l].size(); ++e)
      ab += a[l][e] * b[l][e], aa += a[l][e] * a[l][e], bb += b[l][e] * b[l][e];
    if (ab > 0) sum += ab / std::sqrt(aa * bb);
  }
  return sum / static_cast<double>(a.size());
}

}  // namespace

TEST_CASE("activation prediction equals its definition", "[mission-87]") {
  Rng rng(test::seed());
  for (int world = 0; world < 30; ++world) {
    const int32_t layers = 1 + static_cast<int32_t>(rng() % 5);
    const int32_t experts = 2 + static_cast<int32_t>(rng() % 6);
    auto predictor =
        ActivationPredictor::create({.layers = layers_of(layers, experts), .sequences = 40});
    REQUIRE(predictor.ok());
    const Matrix zero(static_cast<size_t>(layers),
                      std::vector<double>(static_cast<size_t>(experts)));
    std::vector<Matrix> past;
    Matrix current = zero;
    for (int step = 0; step < 300; ++step) {
      if (step % 25 == 24) {
        predictor->sequence_ended();
        past.push_back(current);
        current = zero;
      }
      const int32_t layer = step % layers;
      const auto set = random_set(rng, experts, 1 + rng() % 2);
      for (int32_t e : set) ++current[static_cast<size_t>(layer)][static_cast<size_t>(e)];
      predictor->accessed(layer, set);

      REQUIRE(predictor->remembered() == static_cast<int32_t>(past.size()));
      size_t best = 0;
      double most = -1;
      for (size_t m = 0; m < past.size(); ++m) {
        const double s = predictor->similarity(static_cast<int32_t>(m));
        CHECK(std::abs(s - mean_cosine(current, past[m])) < 1e-12);
        if (s > most) most = s, best = m;
      }
      std::vector<PredictedExpert> out(100);
      out.resize(predictor->predict(3, out));
      if (past.empty()) {
        CHECK(out.empty());
        continue;
      }
      std::map<std::pair<int32_t, int32_t>, double> wanted;
      for (int32_t d = 1; d <= std::min(3, layers - 1); ++d) {
        const int32_t l = (layer + d) % layers;
        const auto& row = past[best][static_cast<size_t>(l)];
        double sum = 0;
        for (double n : row) sum += n;
        for (int32_t e = 0; e < experts; ++e)
          if (row[static_cast<size_t>(e)] > 0)
            wanted[{l, e}] = row[static_cast<size_t>(e)] / sum * (1 - d / (layers + 1.0));
      }
      CHECK(out.size() == wanted.size());
      for (size_t i = 0; i < out.size(); ++i) {
        CHECK(std::abs(out[i].priority - wanted[{out[i].id.layer, out[i].id.expert}]) < 1e-12);
        if (i > 0) CHECK(out[i - 1].priority >= out[i].priority);
      }
    }
  }
}

TEST_CASE("activation prediction recognises a kind of sequence", "[mission-87]") {
  constexpr int32_t kLayers = 6, kExperts = 16;
  auto predictor =
      ActivationPredictor::create({.layers = layers_of(kLayers, kExperts), .sequences = 3});
  REQUIRE(predictor.ok());
  // Kind g uses experts 4 g and 4 g + 1 in every layer.
  const auto run = [&](int32_t kind, int tokens) {
    for (int i = 0; i < tokens * kLayers; ++i)
      predictor->accessed(i % kLayers, std::vector<int32_t>{4 * kind, 4 * kind + 1});
  };
  for (int32_t kind = 0; kind < 3; ++kind) run(kind, 5), predictor->sequence_ended();
  const auto check = [&](int32_t kind) {
    run(kind, 1);
    std::vector<PredictedExpert> out(4);
    REQUIRE(predictor->predict(2, out) == 4);
    CHECK(out[0].id == ExpertId{0, 4 * kind});
    CHECK(out[1].id == ExpertId{0, 4 * kind + 1});
    CHECK(out[2].id == ExpertId{1, 4 * kind});
    CHECK(out[0].priority > out[2].priority);
    predictor->sequence_ended();
  };
  check(1);
  CHECK(predictor->remembered() == 3);
  check(1);

  CHECK_FALSE(ActivationPredictor::create({}).ok());
  CHECK_FALSE(ActivationPredictor::create({.layers = {{0, 4}}, .sequences = 0}).ok());
  CHECK_FALSE(ActivationPredictor::create({.layers = {{0, 1 << 24}}, .sequences = 1000}).ok());
}

TEST_CASE("activation prediction on a recorded trace beats chance", "[mission-87]") {
  if (!test::have_shared()) return test::skip("../shared is absent");
  const auto trace = read_trace(test::gptoss_path());
  REQUIRE(trace.ok());
  auto predictor = ActivationPredictor::create({.layers = trace->layers});
  REQUIRE(predictor.ok());
  constexpr size_t kFetched = 8;
  std::vector<PredictedExpert> next;
  int64_t needed = 0, fetched = 0, right = 0;
  TraceForwards forwards(*trace);
  while (forwards.next()) {
    if (forwards.new_sequence()) predictor->sequence_ended(), next.clear();
    const auto set = forwards.experts().distinct();
    if (!next.empty()) {
      needed += static_cast<int64_t>(set.size());
      fetched += static_cast<int64_t>(next.size());
      for (const PredictedExpert& p : next)
        right += std::find(set.begin(), set.end(), p.id.expert) != set.end();
    }
    predictor->accessed(forwards.row().layer, set);
    next.resize(kFetched);
    next.resize(predictor->predict(1, next));
  }
  const double recall = static_cast<double>(right) / static_cast<double>(needed);
  const double precision = static_cast<double>(right) / static_cast<double>(fetched);
  std::printf("next layer, %zu fetched of 32: recall %.3f (chance %.3f), precision %.3f\n",
              kFetched, recall, kFetched / 32.0, precision);
  CHECK(recall > 1.5 * kFetched / 32);
}

TEST_CASE("the governor follows its rule, step by step", "[mission-87]") {
  PrefetchGovernor governor({.window = 4, .pause = 3, .longest_pause = 10, .least_gain = 0.5});
  const auto steps = [&](int count, PrefetchSample sample, bool on) {
    for (int i = 0; i < count; ++i) {
      CHECK(governor.enabled() == on);
      governor.step(sample);
    }
  };
  steps(8, {}, true);         // no effect: no verdict
  steps(4, {16, 10}, true);   // won
  steps(4, {15, 10}, true);   // gains too little: lost
  steps(3, {100, 0}, false);  // late news changes nothing
  steps(4, {0, 1}, true);     // a probe, lost again
  steps(6, {}, false);        // twice as long
  steps(4, {0, 1}, true);
  steps(10, {}, false);      // but no longer than longest_pause
  steps(4, {16, 10}, true);  // won: the next pause is a short one
  steps(4, {0, 1}, true);
  steps(3, {}, false);
  CHECK(governor.enabled());
  CHECK(governor.stats().won == 2);
  CHECK(governor.stats().lost == 4);
  CHECK(governor.stats().steps_off == 3 + 6 + 10 + 3);
  CHECK(governor.stats().steps_on == 8 + 4 + 4 + 4 + 4 + 4 + 4);
}

TEST_CASE("a prefetch is judged by what became of both experts", "[mission-87]") {
  PrefetchLedger ledger(layers_of(2, 4));
  const ExpertId a{0, 0}, b{0, 1}, c{1, 0}, d{1, 1};
  const auto none = PrefetchEffect::none;
  CHECK(ledger.used(a) == none);

  ledger.prefetched(a, b);  // used before b was missed: a load less, in b's place
  CHECK(ledger.used(a) == PrefetchEffect::saved_load);
  CHECK(ledger.used(a) == none);
  CHECK(ledger.used(b) == none);

  ledger.prefetched(a, b);  // b is missed first
  CHECK(ledger.used(b) == PrefetchEffect::extra_load);
  CHECK(ledger.used(b) == none);
  CHECK(ledger.used(a) == PrefetchEffect::saved_load);

  ledger.prefetched(a, b);  // a leaves unused
  ledger.evicted(a);
  CHECK(ledger.used(a) == none);
  CHECK(ledger.used(b) == PrefetchEffect::extra_load);

  ledger.prefetched(a, b);  // the guess a goes for the guess c
  ledger.prefetched(c, a);
  CHECK(ledger.used(a) == PrefetchEffect::extra_load);
  CHECK(ledger.used(c) == PrefetchEffect::saved_load);

  ledger.prefetched(a, b);  // the one that had left comes back as a guess
  ledger.prefetched(b, d);
  CHECK(ledger.used(b) == PrefetchEffect::saved_load);
  CHECK(ledger.used(d) == none);

  ledger.prefetched(c, {});  // into a free slot
  CHECK(ledger.used(c) == PrefetchEffect::saved_load);
  ledger.evicted({});
  ledger.prefetched({9, 9}, {9, 8});
  CHECK(ledger.used({9, 9}) == none);
}

namespace {

constexpr int64_t kLoad = 1000;  // ns to load an expert; a prefetch delays other loads by a quarter

// A pool with LRU, the activation predictor, and a governor, as a store would join them.
class PrefetchingPool {
 public:
  PrefetchingPool(int32_t layers, int32_t experts, int64_t slots)
      : layers_(layers_of(layers, experts)),
        policy_(*make_lru({.layers = layers_})),
        pool_(layers_, slots, *policy_),
        predictor_(*ActivationPredictor::create({.layers = layers_})),
        ledger_(layers_),
        governor({.window = 256, .pause = 2048}) {}

  void sequence_ended() { predictor_.sequence_ended(); }

  void forward(int32_t layer, const std::vector<int32_t>& set) {
    policy_->accessed({layer, set, {}});
    predictor_.accessed(layer, set);
    PrefetchSample sample;
    for (const int32_t expert : set) {
      const PrefetchEffect effect = ledger_.used({layer, expert});
      sample.saved_ns += effect == PrefetchEffect::saved_load ? kLoad : 0;
      sample.cost_ns += effect == PrefetchEffect::extra_load ? kLoad : 0;
    }
    std::vector<Need> pending;
    for (const int32_t expert : set) pending.push_back({expert});
    std::vector<Residency::Decision> wave;
    while (!pending.empty()) {
      REQUIRE(pool_.take_wave(layer, nullptr, pending, wave).ok());
      for (const Residency::Decision& taken : wave) ledger_.evicted(taken.evicted);
    }
    if (governor.enabled()) prefetch(sample);
    governor.step(sample);
  }

 private:
  struct All final : EvictionCandidates {
    bool contains(ExpertId) const noexcept override { return true; }
  };

  void prefetch(PrefetchSample& sample) {
    std::vector<PredictedExpert> next(2);
    next.resize(predictor_.predict(1, next));
    for (const PredictedExpert& p : next) {
      if (pool_.resident(p.id)) continue;
      ExpertId out;
      REQUIRE(pool_.admit(p.id, All(), &out).ok());
      ledger_.prefetched(p.id, out);
      sample.cost_ns += kLoad / 4;
    }
  }

  std::vector<LayerExperts> layers_;
  std::unique_ptr<EvictionPolicy> policy_;
  Residency pool_;
  ActivationPredictor predictor_;
  PrefetchLedger ledger_;

 public:
  PrefetchGovernor governor;
};

constexpr int32_t kLayers = 8, kExperts = 16;

void random_tokens(PrefetchingPool& pool, Rng& rng, int tokens) {
  for (int t = 0; t < tokens; ++t) {
    if (t % 20 == 19) pool.sequence_ended();
    for (int32_t layer = 0; layer < kLayers; ++layer)
      pool.forward(layer, random_set(rng, kExperts, 2));
  }
}

// Every sequence is of one of four kinds, each with two experts per layer of its own.
void regular_tokens(PrefetchingPool& pool, Rng& rng, int tokens) {
  int32_t kind = 0;
  for (int t = 0; t < tokens; ++t) {
    if (t % 20 == 19) pool.sequence_ended(), kind = static_cast<int32_t>(rng() % 4);
    for (int32_t layer = 0; layer < kLayers; ++layer)
      pool.forward(layer, {4 * kind, 4 * kind + 1 + layer % 3});
  }
}

}  // namespace

TEST_CASE("on a random trace the governor switches prefetching off within 8 windows",
          "[mission-87]") {
  Rng rng(test::seed());
  PrefetchingPool pool(kLayers, kExperts, 24);
  random_tokens(pool, rng, 20);  // the predictor needs a sequence
  int64_t steps = 0;
  for (; pool.governor.enabled() && steps < 8 * 256; steps += kLayers) random_tokens(pool, rng, 1);
  CHECK_FALSE(pool.governor.enabled());
  random_tokens(pool, rng, 20000);
  const auto& stats = pool.governor.stats();
  std::printf("random trace: off after %lld steps, on for %.1f %% of %lld steps\n",
              static_cast<long long>(steps),
              100.0 * static_cast<double>(stats.steps_on) /
                  static_cast<double>(stats.steps_on + stats.steps_off),
              static_cast<long long>(stats.steps_on + stats.steps_off));
  CHECK(stats.steps_on < stats.steps_off / 10);
}

TEST_CASE("on a predictable trace the governor leaves prefetching on", "[mission-87]") {
  Rng rng(test::seed());
  PrefetchingPool pool(kLayers, kExperts, 10);
  regular_tokens(pool, rng, 1000);  // it may lose while the predictor learns the four kinds
  const auto before = pool.governor.stats();
  regular_tokens(pool, rng, 5000);
  const auto& stats = pool.governor.stats();
  CHECK(stats.lost == before.lost);
  CHECK(stats.won > before.won + 100);
  CHECK(stats.saved_ns - before.saved_ns > 2 * (stats.cost_ns - before.cost_ns));
}

TEST_CASE("the governor tries again when the traffic has become predictable", "[mission-87]") {
  Rng rng(test::seed());
  PrefetchingPool pool(kLayers, kExperts, 10);
  regular_tokens(pool, rng, 4000);
  CHECK(pool.governor.enabled());
  random_tokens(pool, rng, 2000);
  CHECK(pool.governor.stats().lost > 0);
  regular_tokens(pool, rng, 20000);
  CHECK(pool.governor.enabled());
  const auto won = pool.governor.stats().won;
  regular_tokens(pool, rng, 1000);
  CHECK(pool.governor.stats().won > won);
}
