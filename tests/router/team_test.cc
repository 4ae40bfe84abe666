// A warp in slow motion: 32 threads, one lane each, exchange values as WarpTeam does. What select()
// computes so must have the bits of one thread that plays all lanes.
#include "router/team.h"

#include <algorithm>
#include <barrier>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "catch.h"
#include "router/select.h"

using namespace moe;

namespace {

struct SlowWarp {
  std::barrier<> barrier{rule::kTeamLanes};
  double values[2][rule::kTeamLanes];  // two of each, used in turn: one barrier per exchange
  rule::Best bests[2][rule::kTeamLanes];
  bool flags[2][rule::kTeamLanes];
};

struct SlowTeam {
  static constexpr int kLanes = 1;
  SlowWarp* warp;
  int me;
  int* turn;

  int lane(int) const { return me; }
  bool leads() const { return me == 0; }
  void sync() const { warp->barrier.arrive_and_wait(); }

  // value = combine(value, the value of lane me ^ step) for step 16, 8, 4, 2, 1, in all lanes.
  template <class T, class Combine>
  T butterfly(T (&slots)[2][rule::kTeamLanes], T value, Combine combine) const {
    T* shared = slots[(*turn)++ % 2];
    shared[me] = value;
    sync();
    T lanes[rule::kTeamLanes], next[rule::kTeamLanes];
    std::copy_n(shared, rule::kTeamLanes, lanes);
    for (int step = rule::kTeamLanes / 2; step > 0; step /= 2) {
      for (int l = 0; l < rule::kTeamLanes; ++l) next[l] = combine(lanes[l], lanes[l ^ step]);
      std::copy_n(next, rule::kTeamLanes, lanes);
    }
    return lanes[me];
  }
  double sum(const double* lanes) const {
    return butterfly(warp->values, lanes[0], [](double a, double b) { return a + b; });
  }
  rule::Best best(const rule::Best* lanes) const {
    return butterfly(warp->bests, lanes[0],
                     [](const rule::Best& a, const rule::Best& b) { return better(b, a) ? b : a; });
  }
  bool any(const bool* lanes) const {
    return butterfly(warp->flags, lanes[0], [](bool a, bool b) { return a || b; });
  }
};

struct Chosen {
  explicit Chosen(int32_t k) : ids(k, -77), weights(k, -77) {}
  std::vector<int32_t> ids;
  std::vector<float> weights;
  rule::Outcome outcome;
};

Chosen select_by_warp(const rule::Rule& rule, rule::Row row) {
  Chosen chosen(rule.top_k);
  row.ids = chosen.ids.data();
  row.weights = chosen.weights.data();
  std::vector<float> scratch(rule::scratch_floats(rule.candidates, rule.num_groups));
  SlowWarp warp;
  std::vector<std::thread> threads;
  for (int lane = 0; lane < rule::kTeamLanes; ++lane)
    threads.emplace_back([&, lane] {
      int turn = 0;
      const rule::Outcome outcome =
          rule::select(SlowTeam{&warp, lane, &turn}, rule, row, scratch.data());
      if (lane == 17) chosen.outcome = outcome;  // equal in every thread
    });
  for (std::thread& thread : threads) thread.join();
  return chosen;
}

Chosen select_by_thread(const rule::Rule& rule, rule::Row row) {
  Chosen chosen(rule.top_k);
  row.ids = chosen.ids.data();
  row.weights = chosen.weights.data();
  std::vector<float> scratch(rule::scratch_floats(rule.candidates, rule.num_groups));
  chosen.outcome = rule::select(rule::ThreadTeam(), rule, row, scratch.data());
  return chosen;
}

}  // namespace

TEST_CASE("one lane per thread gives the bits of one thread with all lanes", "[router]") {
  std::mt19937_64 random(test::seed());
  std::normal_distribution<float> normal(0, 2);
  const std::vector<RouterSpec> specs = {
      {.num_experts = 130, .top_k = 5},
      {.num_experts = 8, .top_k = 2, .softcap = 5},
      {.num_experts = 256,
       .top_k = 8,
       .scoring = Scoring::sigmoid,
       .num_groups = 8,
       .top_groups = 4,
       .group_score = GroupScore::top2_sum,
       .normalize = Normalize::sum_plus_epsilon,
       .epsilon = 1e-20f,
       .scaling = 2.5f},
      {.num_experts = 100,
       .top_k = 35,
       .scoring = Scoring::sqrt_softplus,
       .normalize = Normalize::p_norm,
       .norm_power = 3},
      {.num_experts = 50,
       .top_k = 4,
       .scoring = Scoring::identity,
       .weighting = Weighting::softmax_of_selected_logits},
      {.num_experts = 40,
       .top_k = 2,
       .selection = Selection::sparsemixer,
       .sparsemixer_epsilon = 0.1f},
  };
  for (const RouterSpec& spec : specs)
    for (int kind = 0; kind < 2; ++kind) {
      const int32_t n = spec.candidates();
      std::vector<float> logits(n), bias(n);
      for (float& l : logits) {
        l = kind == 0 ? normal(random) : static_cast<float>(random() % 3);  // ties
        if (kind == 1 && random() % 8 == 0) l = NAN;
      }
      for (float& b : bias) b = 0.1f * normal(random);
      rule::Rule rule = rule::make_rule(spec, spec.top_k);
      if (spec.scoring == Scoring::sigmoid) rule.selection_bias = bias.data();
      const rule::Row row{.logits = logits.data()};
      const Chosen warp = select_by_warp(rule, row), thread = select_by_thread(rule, row);
      CHECK(warp.ids == thread.ids);
      CHECK(std::memcmp(warp.weights.data(), thread.weights.data(),
                        thread.weights.size() * sizeof(float)) == 0);
      CHECK(warp.outcome.chosen == thread.outcome.chosen);
      CHECK(warp.outcome.nonfinite == thread.outcome.nonfinite);
    }
}
