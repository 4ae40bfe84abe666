// The published models' own routers: vectors/router_golden.json, made by running their code.
#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include <simdjson.h>

#include "catch.h"
#include "oracle.h"
#include "run_router.h"

using namespace moe;
using namespace moe::test;

namespace {

constexpr auto kSigmoid = Scoring::sigmoid;
constexpr auto kTop2 = GroupScore::top2_sum;
constexpr auto kSum = Normalize::sum_plus_epsilon;

// What a family's reader would make of the case's config.
const std::map<std::string, RouterSpec>& specs() {
  static const std::map<std::string, RouterSpec> all = {
      {"mixtral", {.num_experts = 8, .top_k = 2, .normalize = kSum}},
      {"qwen2_moe_norm_False", {.num_experts = 64, .top_k = 8}},
      {"qwen2_moe_norm_True", {.num_experts = 64, .top_k = 8, .normalize = kSum}},
      {"gpt_oss",
       {.num_experts = 32,
        .top_k = 4,
        .scoring = Scoring::identity,
        .weighting = Weighting::softmax_of_selected_logits}},
      {"deepseek_v3",
       {.num_experts = 256,
        .top_k = 8,
        .scoring = kSigmoid,
        .num_groups = 8,
        .top_groups = 4,
        .group_score = kTop2,
        .normalize = kSum,
        .epsilon = 1e-20f,
        .scaling = 2.5f}},
      {"kimi_glm_ngroup1",
       {.num_experts = 64,
        .top_k = 8,
        .scoring = kSigmoid,
        .group_score = kTop2,
        .normalize = kSum,
        .epsilon = 1e-20f,
        .scaling = 2.827f}},
      {"dsv3_nonorm",
       {.num_experts = 32,
        .top_k = 4,
        .scoring = kSigmoid,
        .num_groups = 4,
        .top_groups = 2,
        .group_score = kTop2}},
      {"deepseek_v3_NEGATIVE_bias_maskfill0",
       {.num_experts = 32,
        .top_k = 4,
        .scoring = kSigmoid,
        .num_groups = 4,
        .top_groups = 2,
        .group_score = kTop2,
        .normalize = kSum,
        .epsilon = 1e-20f}},
      {"vllm_grouped_v3",
       {.num_experts = 256,
        .top_k = 8,
        .scoring = kSigmoid,
        .num_groups = 8,
        .top_groups = 4,
        .group_score = kTop2,
        .normalize = kSum,
        .scaling = 2.5f}},
      {"vllm_grouped_v2_group_limited_greedy",
       {.num_experts = 160, .top_k = 6, .num_groups = 8, .top_groups = 3, .scaling = 16}},
      {"vllm_grouped_v3_negbias_maskinf",
       {.num_experts = 32,
        .top_k = 4,
        .scoring = kSigmoid,
        .num_groups = 4,
        .top_groups = 2,
        .group_score = kTop2,
        .normalize = kSum}},
      {"vllm_grouped_softmax_bias",
       {.num_experts = 128,
        .top_k = 2,
        .num_groups = 8,
        .top_groups = 2,
        .group_score = kTop2,
        .normalize = kSum}},
      {"ernie4_5",
       {.num_experts = 64,
        .top_k = 6,
        .normalize = Normalize::sum_at_least_epsilon,
        .epsilon = 1e-12f}},
      {"longcat_flash", {.num_experts = 32, .num_zero_experts = 16, .top_k = 12, .scaling = 6}},
      {"afmoe",
       {.num_experts = 64,
        .top_k = 8,
        .scoring = kSigmoid,
        .normalize = kSum,
        .epsilon = 1e-20f,
        .scaling = 2}},
      {"lfm2_moe",
       {.num_experts = 32, .top_k = 4, .scoring = kSigmoid, .normalize = kSum, .epsilon = 1e-6f}},
      {"jamba", {.num_experts = 16, .top_k = 2}},
      {"dbrx_p1.0", {.num_experts = 16, .top_k = 4, .normalize = Normalize::p_norm}},
      {"dbrx_p2.0",
       {.num_experts = 16, .top_k = 4, .normalize = Normalize::p_norm, .norm_power = 2}},
      {"phimoe",
       {.num_experts = 16,
        .top_k = 2,
        .selection = Selection::sparsemixer,
        .sparsemixer_epsilon = 0.01f}},
      {"phimoe_close",
       {.num_experts = 4,
        .top_k = 2,
        .selection = Selection::sparsemixer,
        .sparsemixer_epsilon = 0.01f}},
      {"llama4",
       {.num_experts = 16,
        .top_k = 1,
        .scoring = Scoring::identity,
        .weighting = Weighting::sigmoid_of_logit,
        .weight_on_input = true}},
      {"granitemoe",
       {.num_experts = 64,
        .top_k = 8,
        .scoring = Scoring::identity,
        .weighting = Weighting::softmax_of_selected_logits}},
      {"sqrtsoftplus_bias(DeepSeek-V4 style)",
       {.num_experts = 64,
        .top_k = 6,
        .scoring = Scoring::sqrt_softplus,
        .normalize = Normalize::sum_at_least_epsilon,
        .epsilon = 1e-20f,
        .scaling = 2.5f}},
      {"hash_table(DeepSeek-V4 style)",
       {.num_experts = 64,
        .top_k = 6,
        .scoring = Scoring::sqrt_softplus,
        .selection = Selection::token_lookup,
        .normalize = Normalize::sum_at_least_epsilon,
        .epsilon = 1e-20f}},
      {"switch_top1_capacity2", {.num_experts = 4, .top_k = 1, .capacity = 2}},
  };
  return all;
}

std::string name_of(simdjson::dom::element test) {
  return std::string(test["name"].get_string().value());
}

template <class T>
std::vector<T> numbers(simdjson::dom::element list) {
  std::vector<T> out;
  for (auto value : list.get_array()) {
    if (value.is_array())
      for (T inner : numbers<T>(value)) out.push_back(inner);
    else
      out.push_back(static_cast<T>(value.is_double() ? double(value) : double(int64_t(value))));
  }
  return out;
}

// A row's choice, ascending in the expert as the file has it.
std::vector<std::pair<int, double>> sorted_row(const Routed& routed, int64_t token) {
  std::vector<std::pair<int, double>> row;
  for (int place = 0; place < routed.top_k; ++place)
    row.emplace_back(routed.ids[token * routed.top_k + place],
                     routed.weights[token * routed.top_k + place]);
  std::sort(row.begin(), row.end());
  return row;
}

struct Golden {
  RouterSpec spec;
  std::vector<float> logits, bias;
  std::vector<int64_t> table, token_ids;

  Routed route() const {
    RouterWeights weights;
    const bool has_table = !table.empty();
    if (!bias.empty())
      weights.selection_bias =
          TensorView(bias.data(), DType::f32, {static_cast<int64_t>(bias.size())});
    if (has_table)
      weights.token_experts = TensorView(
          table.data(), DType::i64, {static_cast<int64_t>(table.size()) / spec.top_k, spec.top_k});
    auto router = Router::create(spec, weights);
    INFO(router.status().message());
    REQUIRE(router.ok());
    RouteInput input;
    if (has_table) input.token_ids = token_ids.data();
    return route_logits(**router, logits, spec.candidates(), input);
  }
};

Golden read(simdjson::dom::element test, const RouterSpec& spec) {
  Golden golden{spec, numbers<float>(test["logits"]), {}, {}, {}};
  simdjson::dom::element found;
  if (!test["bias"].get(found) && found.is_array()) golden.bias = numbers<float>(found);
  if (!test["config"]["hash_table"].get(found)) {
    golden.table = numbers<int64_t>(found);
    golden.token_ids = numbers<int64_t>(test["config"]["token_ids"]);
  }
  return golden;
}

// gpt-oss lists the logits before its linear bias.
void add_logit_bias(Golden& golden) {
  for (size_t i = 0; i < golden.logits.size(); ++i)
    golden.logits[i] += golden.bias[i % golden.bias.size()];
  golden.bias.clear();
}

// Rows whose ids and weights are those of the file.
int matching_rows(simdjson::dom::element test, const Routed& routed) {
  const auto ids = numbers<int>(test["topk_ids_sorted"]);
  const auto weights = numbers<double>(test["weights_for_sorted_ids"]);
  REQUIRE(ids.size() == routed.ids.size());
  int matches = 0;
  for (size_t t = 0; t < ids.size() / routed.top_k; ++t) {
    const auto row = sorted_row(routed, static_cast<int64_t>(t));
    bool equal = true;
    for (int place = 0; place < routed.top_k; ++place) {
      const size_t at = t * routed.top_k + place;
      equal &= row[place].first == ids[at] &&
               std::abs(row[place].second - weights[at]) <= 1e-6 * std::abs(weights[at]) + 1e-9;
    }
    matches += equal;
  }
  return matches;
}

}  // namespace

TEST_CASE("the published models' routers choose and weigh alike", "[router][mission-13]") {
  if (!have_shared()) return skip("../shared is absent");
  simdjson::dom::parser parser;
  simdjson::dom::element file = parser.load(shared_dir() + "/vectors/router_golden.json");
  int cases = 0;
  for (simdjson::dom::element test : file["cases"].get_array()) {
    const std::string name = name_of(test);
    INFO(name);
    REQUIRE(specs().count(name) == 1);
    ++cases;
    if (name == "switch_top1_capacity2") continue;  // below
    Golden golden = read(test, specs().at(name));
    if (name == "gpt_oss") add_logit_bias(golden);
    const Routed routed = golden.route();
    REQUIRE(routed.status.ok());
    const int rows = static_cast<int>(golden.logits.size()) / golden.spec.candidates();
    if (name == "deepseek_v3_NEGATIVE_bias_maskfill0")
      CHECK(matching_rows(test, routed) < rows);  // its own test is below
    else
      CHECK(matching_rows(test, routed) == rows);
  }
  CHECK(cases == 26);
}

TEST_CASE("groups are masked by -inf, not by 0", "[router][mission-13]") {
  if (!have_shared()) return skip("../shared is absent");
  // With every biased score below 0, a mask of 0 lets the experts outside the groups win.
  simdjson::dom::parser parser;
  simdjson::dom::element file = parser.load(shared_dir() + "/vectors/router_golden.json");
  for (simdjson::dom::element test : file["cases"].get_array()) {
    const std::string name = name_of(test);
    if (name != "deepseek_v3_NEGATIVE_bias_maskfill0") continue;
    const Golden golden = read(test, specs().at(name));
    const Routed routed = golden.route();
    REQUIRE(routed.status.ok());
    const auto theirs = numbers<int>(test["topk_ids_sorted"]);
    const int n = golden.spec.candidates(), k = golden.spec.top_k;
    for (size_t t = 0; t < golden.logits.size() / n; ++t) {
      const OracleChoice expected =
          oracle({golden.spec, k, golden.bias, {}},
                 {{golden.logits.begin() + t * n, golden.logits.begin() + (t + 1) * n}, {}, {}});
      std::vector<bool> kept(golden.spec.num_groups);
      for (int place = 0; place < k; ++place) {
        CHECK(routed.ids[t * k + place] == expected.ids[place]);
        kept[expected.ids[place] / (n / golden.spec.num_groups)] = true;
      }
      CHECK(std::count(kept.begin(), kept.end(), true) <= golden.spec.top_groups);
      for (int place = 0; place < k; ++place)  // theirs all lie outside the best groups
        CHECK_FALSE(kept[theirs[t * k + place] / (n / golden.spec.num_groups)]);
    }
  }
}

TEST_CASE("Switch drops a sequence's tokens beyond the capacity", "[router]") {
  if (!have_shared()) return skip("../shared is absent");
  simdjson::dom::parser parser;
  simdjson::dom::element file = parser.load(shared_dir() + "/vectors/router_golden.json");
  for (simdjson::dom::element test : file["cases"].get_array()) {
    if (name_of(test) != "switch_top1_capacity2") continue;
    const auto logits = numbers<float>(test["logits"]);
    const auto mask = numbers<int>(test["expert_mask"]);
    const auto weights = numbers<double>(test["weights"]);
    auto router = Router::create(specs().at("switch_top1_capacity2"));
    REQUIRE(router.ok());
    // The file's shape is (12 sequences, 1 token, 4 experts): one call each drops nothing.
    for (int t = 0; t < 12; ++t) {
      const Routed one =
          route_logits(**router, {logits.begin() + t * 4, logits.begin() + t * 4 + 4}, 4);
      REQUIRE(one.ids[0] >= 0);
      for (int e = 0; e < 4; ++e) CHECK(mask[t * 4 + e] == (e == one.ids[0]));
      CHECK(one.weights[0] == Approx(weights[t]).epsilon(1e-6));
    }
    // As one sequence, each expert keeps its first two tokens.
    const Routed all = route_logits(**router, logits, 4);
    int taken[4] = {}, dropped = 0;
    for (int t = 0; t < 12; ++t) {
      const int wanted =
          static_cast<int>(std::find(&mask[t * 4], &mask[t * 4] + 4, 1) - &mask[t * 4]);
      const bool kept = ++taken[wanted] <= 2;
      CHECK(all.ids[t] == (kept ? wanted : -1));
      CHECK(all.weights[t] == (kept ? Approx(weights[t]).epsilon(1e-6) : Approx(0)));
      dropped += !kept;
    }
    CHECK(all.counts.dropped == dropped);
    CHECK(dropped > 0);
  }
}
