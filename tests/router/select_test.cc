// Every part of the rule on rows one can check by hand.
#include "router/select.h"

#include <limits>

#include "catch.h"
#include "router/kernels.h"
#include "run_router.h"

using namespace moe;
using namespace moe::test;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using Ids = std::vector<int32_t>;

struct Weights {
  std::vector<float> selection_bias, per_expert_scale;
  std::vector<int32_t> table;  // one row
};

Routed route(const RouterSpec& spec, const std::vector<float>& row, const Weights& weights = {},
             RouteInput input = {}) {
  RouterWeights views;
  const auto view = [](const std::vector<float>& v) {
    return v.empty() ? TensorView()
                     : TensorView(v.data(), DType::f32, {static_cast<int64_t>(v.size())});
  };
  views.selection_bias = view(weights.selection_bias);
  views.per_expert_scale = view(weights.per_expert_scale);
  const int64_t columns = static_cast<int64_t>(weights.table.size());
  if (columns > 0) views.token_experts = TensorView(weights.table.data(), DType::i32, {1, columns});
  auto router = Router::create(spec, views);
  INFO(router.status().message());
  REQUIRE(router.ok());
  Routed routed = route_logits(**router, row, spec.candidates(), input);
  INFO(routed.status.message());
  REQUIRE(routed.status.ok());
  return routed;
}

void check_weights(const Routed& routed, const std::vector<double>& wanted) {
  REQUIRE(routed.weights.size() == wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i)
    CHECK(routed.weights[i] == Approx(wanted[i]).epsilon(1e-6));
}

const float kLog2 = std::log(2.f), kLog3 = std::log(3.f);

}  // namespace

TEST_CASE("softmax over all, top-k, renormalised, scaled", "[router][mission-13]") {
  const std::vector<float> row = {0, kLog3, kLog2, 0};  // exp: 1 3 2 1, sum 7
  Routed routed = route({.num_experts = 4, .top_k = 2}, row);
  CHECK(routed.ids == Ids{1, 2});
  check_weights(routed, {3. / 7, 2. / 7});
  routed = route({.num_experts = 4, .top_k = 2, .normalize = Normalize::sum_plus_epsilon}, row);
  check_weights(routed, {3. / 5, 2. / 5});
  routed = route({.num_experts = 4, .top_k = 2, .scaling = 14}, row);
  check_weights(routed, {6, 4});
}

TEST_CASE("the other scoring functions", "[router][mission-13]") {
  const std::vector<float> row = {0, kLog3, -kLog3};
  Routed routed = route({.num_experts = 3, .top_k = 3, .scoring = Scoring::sigmoid}, row);
  CHECK(routed.ids == Ids{1, 0, 2});
  check_weights(routed, {3. / 4, 1. / 2, 1. / 4});
  routed = route({.num_experts = 3, .top_k = 2, .scoring = Scoring::identity}, row);
  check_weights(routed, {kLog3, 0});
  routed = route({.num_experts = 3, .top_k = 1, .scoring = Scoring::sqrt_softplus}, row);
  check_weights(routed, {std::sqrt(std::log(4.))});
}

TEST_CASE("weights made from the selected logits", "[router][mission-13]") {
  const std::vector<float> row = {0, kLog3, kLog2, 0};
  Routed routed = route({.num_experts = 4,
                         .top_k = 2,
                         .scoring = Scoring::identity,
                         .weighting = Weighting::softmax_of_selected_logits},
                        row);
  CHECK(routed.ids == Ids{1, 2});
  check_weights(routed, {3. / 5, 2. / 5});
  routed = route({.num_experts = 4,
                  .top_k = 1,
                  .scoring = Scoring::identity,
                  .weighting = Weighting::sigmoid_of_logit,
                  .weight_on_input = true},
                 row);
  check_weights(routed, {3. / 4});
}

TEST_CASE("equal keys go to the lower index", "[router][mission-13]") {
  for (Scoring scoring :
       {Scoring::softmax, Scoring::sigmoid, Scoring::sqrt_softplus, Scoring::identity}) {
    Routed routed =
        route({.num_experts = 100, .top_k = 5, .scoring = scoring}, std::vector<float>(100, 0.5f));
    CHECK(routed.ids == Ids{0, 1, 2, 3, 4});
  }
  std::vector<float> row(100, 1.f);  // equals in different lanes, and in one lane (3, 35, 67)
  row[67] = row[35] = row[3] = row[90] = 2;
  CHECK(route({.num_experts = 100, .top_k = 5}, row).ids == Ids{3, 35, 67, 90, 0});
  CHECK(route({.num_experts = 2, .top_k = 2}, {-0.f, 0.f}).ids == Ids{0, 1});
}

TEST_CASE("logits that differ do not tie because their scores round alike", "[router]") {
  const std::vector<float> row = {30, 40, 50, 20};
  CHECK(route({.num_experts = 4, .top_k = 4, .scoring = Scoring::sigmoid}, row).ids ==
        Ids{2, 1, 0, 3});
}

TEST_CASE("the selection bias selects but does not weigh", "[router][mission-13]") {
  Routed routed = route({.num_experts = 3, .top_k = 1, .scoring = Scoring::sigmoid},
                        {0, kLog3, -kLog3}, {.selection_bias = {0, 0, 1}});
  CHECK(routed.ids == Ids{2});
  check_weights(routed, {1. / 4});
  routed = route({.num_experts = 3, .top_k = 3, .scoring = Scoring::sigmoid}, {0, kLog3, -kLog3},
                 {.selection_bias = {0, -kInf, 0}});  // -inf: never
  CHECK(routed.ids == Ids{0, 2, -1});
  CHECK(routed.counts.short_rows == 1);
  CHECK(routed.counts.nonfinite_rows == 0);
}

TEST_CASE("groups by their best, or by their best two", "[router][mission-13]") {
  RouterSpec spec{
      .num_experts = 6, .top_k = 2, .scoring = Scoring::identity, .num_groups = 3, .top_groups = 1};
  const std::vector<float> row = {5, 0, 4, 3, 1, 1};
  CHECK(route(spec, row).ids == Ids{0, 1});
  spec.group_score = GroupScore::top2_sum;
  CHECK(route(spec, row).ids == Ids{2, 3});
  CHECK(route(spec, {1, 1, 2, 0, 0, 2}).ids == Ids{0, 1});        // equal groups: the lower index
  CHECK(route(spec, {-9, -9, -2, -9, -3, -3}).ids == Ids{4, 5});  // masked by -inf, not 0
  // Fewer than two candidates: after the groups with two, before those with none.
  Routed routed = route(spec, {kNan, kNan, 9, kNan, -5, -5});
  CHECK(routed.ids == Ids{4, 5});
  routed = route(spec, {kNan, kNan, kNan, 9, kNan, kInf});
  CHECK(routed.ids == Ids{3, -1});
  CHECK(routed.counts.short_rows == 1);
}

TEST_CASE("normalisations, their epsilons, and divisors of 0", "[router][mission-13]") {
  RouterSpec spec{.num_experts = 2, .top_k = 2, .scoring = Scoring::identity};
  spec.normalize = Normalize::sum_plus_epsilon;
  spec.epsilon = 1;
  check_weights(route(spec, {4, 3}), {4. / 8, 3. / 8});
  spec.normalize = Normalize::sum_at_least_epsilon;
  spec.epsilon = 10;
  check_weights(route(spec, {4, 3}), {4. / 10, 3. / 10});
  spec.epsilon = 1;
  check_weights(route(spec, {4, 3}), {4. / 7, 3. / 7});
  spec.normalize = Normalize::p_norm;
  spec.norm_power = 2;
  check_weights(route(spec, {4, -3}), {4. / 5, -3. / 5});
  spec.norm_power = 1;
  check_weights(route(spec, {4, -3}), {4. / 7, -3. / 7});
  spec.norm_power = 3;
  check_weights(route(spec, {2, 1}), {2 / std::cbrt(9.), 1 / std::cbrt(9.)});

  spec.normalize = Normalize::sum_plus_epsilon;
  spec.epsilon = 0;
  check_weights(route(spec, {4, -4}), {4, -4});
  spec.normalize = Normalize::p_norm;
  check_weights(route(spec, {0, 0}), {0, 0});
  // Scores far below the smallest float still make weights.
  check_weights(route({.num_experts = 3, .top_k = 2, .normalize = Normalize::sum_plus_epsilon},
                      {300, 0, kLog3}, {.selection_bias = {-kInf, 0, 0}}),
                {1. / 4, 3. / 4});
}

TEST_CASE("softcap, per-expert scale, zero experts", "[router][mission-13]") {
  RouterSpec spec{.num_experts = 2, .top_k = 1, .scoring = Scoring::identity, .softcap = 30};
  check_weights(route(spec, {1000, 15}), {30});
  check_weights(route(spec, {0, 15}), {30 * std::tanh(0.5)});
  Routed routed = route({.num_experts = 2, .top_k = 2, .normalize = Normalize::sum_plus_epsilon},
                        {0, kLog3}, {.per_expert_scale = {8, 2}});
  check_weights(routed, {2 * 3. / 4, 8 * 1. / 4});
  routed = route({.num_experts = 2, .num_zero_experts = 2, .top_k = 2}, {0, 0, kLog2, kLog3});
  CHECK(routed.ids == Ids{3, 2});
  check_weights(routed, {3. / 7, 2. / 7});
}

TEST_CASE("sparsemixer", "[router][mission-13]") {
  const RouterSpec spec{.num_experts = 4,
                        .top_k = 2,
                        .selection = Selection::sparsemixer,
                        .sparsemixer_epsilon = 0.01f};
  Routed routed = route(spec, {1, 10, 5, 2});  // far apart: both weights are 1
  CHECK(routed.ids == Ids{1, 2});
  check_weights(routed, {1, 1});
  routed = route(spec, {10, 9.9f, 0, 0});  // 1% apart: the first shares, the second stands alone
  CHECK(routed.ids == Ids{0, 1});
  check_weights(routed, {1 / (1 + std::exp(9.9f - 10.)), 1});
  routed = route(spec, {0, 0, 0, 0});  // 0 / 0 of the formula keeps all
  CHECK(routed.ids == Ids{0, 1});
  check_weights(routed, {1. / 4, 1. / 3});
  routed = route(spec, {kNan, 3, -kInf, kNan});
  CHECK(routed.ids == Ids{1, -1});
  check_weights(routed, {1, 0});
}

TEST_CASE("experts by token id", "[router][mission-13]") {
  const RouterSpec spec{.num_experts = 4,
                        .top_k = 3,
                        .scoring = Scoring::sigmoid,
                        .selection = Selection::token_lookup,
                        .normalize = Normalize::sum_plus_epsilon};
  const int64_t token = 0;
  RouteInput input{.token_ids = &token};
  Routed routed = route(spec, {kLog3, 0, 0, -kLog3}, {.table = {3, 0, 2}}, input);
  CHECK(routed.ids == Ids{3, 0, 2});
  check_weights(routed, {1. / 6, 3. / 6, 2. / 6});
  routed = route(spec, {kLog3, 0, 0, kNan}, {.table = {3, 0, 2}}, input);
  CHECK(routed.ids == Ids{0, 2, -1});
  check_weights(routed, {3. / 5, 2. / 5, 0});
}

TEST_CASE("capacity drops later rows", "[router][mission-13]") {
  auto router = Router::create({.num_experts = 2, .top_k = 1, .capacity = 2});
  REQUIRE(router.ok());
  Routed routed = route_logits(**router, {1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1}, 2);
  CHECK(routed.ids == Ids{0, 0, 1, -1, -1, 1});
  CHECK(routed.weights[3] == 0);
  CHECK(routed.counts.dropped == 2);
  CHECK(routed.counts.short_rows == 0);
}

TEST_CASE("non-finite logits are taken out, counted, and never chosen", "[router][mission-13]") {
  for (Scoring scoring :
       {Scoring::softmax, Scoring::sigmoid, Scoring::sqrt_softplus, Scoring::identity})
    for (Normalize normalize : {Normalize::none, Normalize::sum_plus_epsilon,
                                Normalize::sum_at_least_epsilon, Normalize::p_norm}) {
      const RouterSpec spec{
          .num_experts = 5, .top_k = 3, .scoring = scoring, .normalize = normalize};
      const RouterSpec small{
          .num_experts = 2, .top_k = 2, .scoring = scoring, .normalize = normalize};
      Routed routed = route(spec, {kNan, 1, kInf, 2, -kInf});
      const Routed clean = route(small, {1, 2});
      CHECK(routed.ids == Ids{3, 1, -1});
      CHECK(routed.weights[0] == clean.weights[0]);
      CHECK(routed.weights[1] == clean.weights[1]);
      CHECK(routed.weights[2] == 0);
      CHECK(routed.counts.nonfinite_rows == 1);
      CHECK(routed.counts.short_rows == 1);
      routed = route(spec, {kNan, kNan, -kNan, kInf, -kInf});
      CHECK(routed.ids == Ids{-1, -1, -1});
      CHECK(routed.weights == std::vector<float>{0, 0, 0});
    }
}

TEST_CASE("the dispatched selection has the bits of the plain one", "[router]") {
  const RouterSpec spec{.num_experts = 96,
                        .top_k = 6,
                        .scoring = Scoring::sqrt_softplus,
                        .num_groups = 4,
                        .top_groups = 2,
                        .group_score = GroupScore::top2_sum,
                        .normalize = Normalize::p_norm,
                        .norm_power = 1.7f,
                        .softcap = 3};
  const rule::Rule rule = rule::make_rule(spec, 6);
  std::vector<float> scratch(rule::scratch_floats(96, 4)), logits(96);
  uint64_t state = seed();
  for (int repeat = 0; repeat < 2000; ++repeat) {
    for (float& l : logits) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      l = static_cast<float>(static_cast<int64_t>(state) >> 40) * 0x1p-20f;
    }
    int32_t ids[2][6];
    float weights[2][6];
    rule::select(rule::ThreadTeam(), rule, {logits.data(), nullptr, 0, ids[0], weights[0]},
                 scratch.data());
    select_row(rule, {logits.data(), nullptr, 0, ids[1], weights[1]}, scratch.data());
    REQUIRE(std::memcmp(ids[0], ids[1], sizeof ids[0]) == 0);
    REQUIRE(std::memcmp(weights[0], weights[1], sizeof weights[0]) == 0);
  }
}
