// Every invalid argument gets a Status that names field, value and range, and changes nothing.
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "catch.h"
#include "run_router.h"

using namespace moe;
using namespace moe::test;

namespace {

void check_error(const Status& status, const std::vector<std::string>& words) {
  CHECK(status.code() == StatusCode::invalid_argument);
  const std::string message(status.message());
  INFO(message);
  for (const std::string& word : words) CHECK(message.find(word) != std::string::npos);
  CHECK(status.place().phase == Phase::route);
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

RouterSpec good_spec() { return {.num_experts = 8, .top_k = 2}; }

struct BadSpec {
  std::function<void(RouterSpec&)> spoil;
  std::vector<std::string> words;
};

}  // namespace

TEST_CASE("every field of a spec is checked", "[router][mission-12]") {
  REQUIRE(validate(good_spec()).ok());
  const std::vector<BadSpec> cases = {
      {[](RouterSpec& s) { s.num_experts = 0; }, {"num_experts", "0", "[1, 65536]"}},
      {[](RouterSpec& s) { s.num_experts = -3; }, {"num_experts", "-3", "[1, 65536]"}},
      {[](RouterSpec& s) { s.num_experts = INT32_MAX; }, {"num_experts", "2147483647"}},
      {[](RouterSpec& s) { s.num_zero_experts = -1; }, {"num_zero_experts", "-1", "[0, 65528]"}},
      {[](RouterSpec& s) { s.num_zero_experts = INT32_MAX; }, {"num_zero_experts"}},
      {[](RouterSpec& s) { s.top_k = 0; }, {"top_k", "0", "[1, 8]"}},
      {[](RouterSpec& s) { s.top_k = 9; }, {"top_k", "9", "[1, 8]"}},
      {[](RouterSpec& s) { s.scoring = Scoring(4); }, {"scoring", "4", "[0, 3]"}},
      {[](RouterSpec& s) { s.selection = Selection(-1); }, {"selection", "-1", "[0, 2]"}},
      {[](RouterSpec& s) { s.group_score = GroupScore(2); }, {"group_score", "2", "[0, 1]"}},
      {[](RouterSpec& s) { s.weighting = Weighting(3); }, {"weighting", "3", "[0, 2]"}},
      {[](RouterSpec& s) { s.normalize = Normalize(4); }, {"normalize", "4", "[0, 3]"}},
      {[](RouterSpec& s) { s.num_groups = 0; }, {"num_groups", "0", "[1, 8]"}},
      {[](RouterSpec& s) { s.num_groups = 3; }, {"num_groups", "3", "divide", "8"}},
      {[](RouterSpec& s) { s.top_groups = 0; }, {"top_groups", "0", "[1, 1]"}},
      {[](RouterSpec& s) { s.num_groups = 4, s.top_groups = 5; }, {"top_groups", "5", "[1, 4]"}},
      {[](RouterSpec& s) { s.num_groups = 4, s.top_k = 3; }, {"top_groups", "1", "2", "3"}},
      {[](RouterSpec& s) {
         s.num_groups = s.top_groups = 8;
         s.group_score = GroupScore::top2_sum;
       },
       {"group_score", "1 candidate", "2"}},
      {[](RouterSpec& s) { s.epsilon = -1; }, {"epsilon", "-1", "at least 0"}},
      {[](RouterSpec& s) { s.epsilon = kNan; }, {"epsilon", "nan", "finite"}},
      {[](RouterSpec& s) { s.norm_power = 0; }, {"norm_power", "0", "above 0"}},
      {[](RouterSpec& s) { s.norm_power = kInf; }, {"norm_power", "inf"}},
      {[](RouterSpec& s) { s.scaling = kInf; }, {"scaling", "inf", "finite"}},
      {[](RouterSpec& s) { s.softcap = -30; }, {"softcap", "-30", "at least 0"}},
      {[](RouterSpec& s) { s.sparsemixer_epsilon = -1; }, {"sparsemixer_epsilon", "-1"}},
      {[](RouterSpec& s) { s.input_norm_epsilon = kNan; }, {"input_norm_epsilon", "nan"}},
      {[](RouterSpec& s) { s.capacity = -1; }, {"capacity", "-1"}},
      {[](RouterSpec& s) { s.selection = Selection::sparsemixer, s.top_k = 3; },
       {"top_k", "3", "sparsemixer", "[1, 2]"}},
      {[](RouterSpec& s) { s.selection = Selection::sparsemixer, s.num_groups = 2; },
       {"num_groups", "2", "sparsemixer"}},
      {[](RouterSpec& s) {
         s.selection = Selection::sparsemixer, s.weighting = Weighting::sigmoid_of_logit;
       },
       {"weighting", "sparsemixer"}},
      {[](RouterSpec& s) { s.selection = Selection::token_lookup, s.num_groups = 2; },
       {"num_groups", "2", "token_lookup"}},
  };
  for (const BadSpec& test : cases) {
    RouterSpec spec = good_spec();
    test.spoil(spec);
    check_error(validate(spec), test.words);
    check_error(Router::create(spec).status(), test.words);
  }
}

TEST_CASE("router weights are checked before they are used", "[router][mission-12]") {
  std::vector<float> values(64, 0.5f);
  const auto vector = [&](int64_t n) { return TensorView(values.data(), DType::f32, {n}); };
  const auto create = [](const RouterWeights& weights, RouterSpec spec = good_spec()) {
    return Router::create(spec, weights).status();
  };
  const TensorView matrix(values.data(), DType::f32, {8, 4});
  REQUIRE(create({.weight = matrix, .logit_bias = vector(8)}).ok());

  check_error(create({.weight = TensorView(values.data(), DType::f32, {7, 4})}),
              {"weight", "(7, 4)", "(8,"});
  check_error(create({.weight = vector(8)}), {"weight", "(8)"});
  check_error(create({.weight = TensorView(values.data(), DType::i8, {8, 4})}),
              {"weight", "i8", "f32, bf16 or f16"});
  check_error(create({.weight = TensorView(values.data(), DType::f32, {8, 4}, Device::cuda(0))}),
              {"weight", "CPU"});
  check_error(
      create({.weight = TensorView(values.data(), DType::f32, {8, 4}, {1, 8}, Device::cpu())}),
      {"weight", "stride 8", "1"});
  check_error(create({.weight = matrix, .logit_bias = vector(7)}), {"logit_bias", "(7)", "(8)"});
  check_error(create({.weight = matrix, .selection_bias = vector(9)}), {"selection_bias", "(9)"});
  check_error(create({.weight = matrix, .per_expert_scale = matrix}), {"per_expert_scale"});
  RouterSpec normalized = good_spec();
  normalized.normalize_input = true;
  check_error(create({.weight = matrix, .input_scale = vector(5)}, normalized),
              {"input_scale", "(5)", "(4)"});
  check_error(create({.weight = matrix, .input_scale = vector(4)}),
              {"input_scale", "normalize_input"});
  const Status at = create({.weight = matrix, .logit_bias = vector(7)});
  CHECK(at.place().tensor == "logit_bias");

  values[3] = kNan;
  check_error(create({.selection_bias = vector(8)}), {"selection_bias[3]", "nan", "finite"});
  check_error(create({.logit_bias = vector(8)}), {"logit_bias[3]", "nan"});
  check_error(create({.per_expert_scale = vector(8)}), {"per_expert_scale[3]", "nan"});
  values[3] = kInf;
  check_error(create({.selection_bias = vector(8)}), {"selection_bias[3]", "inf"});
  values[3] = -kInf;
  CHECK(create({.selection_bias = vector(8)}).ok());
  check_error(create({.per_expert_scale = vector(8)}), {"per_expert_scale[3]", "-inf"});

  RouterSpec lookup = good_spec();
  lookup.selection = Selection::token_lookup;
  std::vector<int32_t> table = {0, 1, 2, 8};
  const auto with_table = [&](const TensorView& view) {
    return create({.token_experts = view}, lookup);
  };
  check_error(with_table({}), {"token_experts", "absent"});
  check_error(with_table(TensorView(table.data(), DType::f32, {2, 2})), {"token_experts", "f32"});
  check_error(with_table(TensorView(table.data(), DType::i32, {4, 1})),
              {"token_experts", "1 experts", "top_k", "2"});
  check_error(with_table(TensorView(table.data(), DType::i32, {2, 2})),
              {"token_experts[1][1]", "8", "[0, 7]"});
}

TEST_CASE("a call is checked before anything is written", "[router][mission-12]") {
  std::vector<float> values(64, 0.5f);
  const TensorView matrix(values.data(), DType::f32, {8, 4});
  auto router = Router::create(good_spec(), {.weight = matrix});
  REQUIRE(router.ok());
  const size_t bytes = (*router)->workspace_bytes(3, 1);
  AlignedBytes memory(bytes + 64);
  std::vector<int32_t> ids(6, -77);
  std::vector<float> weights(6, -77);
  const Routing out{3, 2, ids.data(), weights.data()};
  const RouteInput good{.layer = 5,
                        .hidden = TensorView(values.data(), DType::f32, {3, 4}),
                        .workspace = memory.span(bytes)};
  const auto check = [&](const RouteInput& input, const Routing& routing,
                         const std::vector<std::string>& words) {
    RouteCounts counts;
    const Status status = (*router)->route(input, routing, &counts);
    check_error(status, words);
    CHECK(status.place().layer == 5);
    CHECK(ids == std::vector<int32_t>(6, -77));
    CHECK(weights == std::vector<float>(6, -77));
    CHECK(counts.short_rows == 0);
  };
  const auto with = [&](auto change) {
    RouteInput input = good;
    change(input);
    return input;
  };

  check(with([&](auto& i) {
          i.hidden = TensorView(values.data(), DType::f32, {3, 5});
        }),
        out, {"hidden", "(3, 5)", "(tokens, 4)"});
  check(with([&](auto& i) { i.hidden = TensorView(values.data(), DType::f32, {12}); }), out,
        {"hidden", "(12)"});
  check(with([&](auto& i) { i.hidden.dtype = DType::i32; }), out, {"hidden", "i32"});
  check(with([&](auto& i) { i.hidden.device = Device::cuda(0); }), out, {"hidden", "CPU"});
  check(with([&](auto& i) { i.hidden.data = nullptr; }), out, {"hidden", "no data"});
  check(with([&](auto& i) {
          i.logits = TensorView(values.data(), DType::f32, {3, 7});
        }),
        out, {"logits", "(3, 7)", "(tokens, 8)"});
  check(with([](auto& i) { i.top_k = 9; }), out, {"top_k", "9", "[1, 8]"});
  check(with([](auto& i) { i.top_k = -1; }), out, {"top_k", "-1", "[1, 8]"});
  check(with([](auto& i) { i.top_k = 3; }), out, {"top_k", "2", "3"});
  check(with([](auto& i) { i.stream.device = Device::cuda(0); }), out, {"stream"});
  check(with([&](auto& i) { i.workspace = memory.span(bytes - 1); }), out,
        {"workspace", std::to_string(bytes - 1), std::to_string(bytes)});
  check(with([&](auto& i) { i.workspace = memory.span(bytes + 8).subspan(8); }), out,
        {"workspace", "64-byte aligned"});
  check(good, {4, 2, ids.data(), weights.data()}, {"4 tokens", "3"});
  check(good, {3, 2, nullptr, weights.data()}, {"Routing.ids", "null"});
  check(good, {3, 2, ids.data(), nullptr}, {"Routing.weights", "null"});
  CHECK((*router)->route(good, out, nullptr).ok());
}

TEST_CASE("a rule without weights needs logits, one with a table needs tokens", "[router]") {
  std::vector<float> values(64, 0.5f);
  auto bare = Router::create(good_spec());
  REQUIRE(bare.ok());
  RouteInput input{.hidden = TensorView(values.data(), DType::f32, {1, 4})};
  check_error(run_router(**bare, input).status, {"RouterWeights.weight", "RouteInput.logits"});

  RouterSpec spec = good_spec();
  spec.selection = Selection::token_lookup;
  const std::vector<int32_t> table = {0, 1, 2, 3};
  auto lookup =
      Router::create(spec, {.token_experts = TensorView(table.data(), DType::i32, {2, 2})});
  REQUIRE(lookup.ok());
  input = {.logits = TensorView(values.data(), DType::f32, {2, 8})};
  check_error(run_router(**lookup, input).status, {"token_ids", "null"});
  const int64_t tokens[] = {1, 2};
  input.token_ids = tokens;
  check_error(run_router(**lookup, input).status, {"token_ids[1]", "2", "[0, 1]"});
  input.top_k = 3;
  check_error(run_router(**lookup, input).status, {"top_k", "3", "[1, 2]"});
}
