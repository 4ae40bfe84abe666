// The Router interface: logits, types, strides, threads, options, errors, and one of one's own.
#include "moe/router.h"

#include <random>
#include <string>

#include "catch.h"
#include "model/allocations.h"
#include "quant/half.h"
#include "router/cpu_router.h"
#include "run_router.h"

using namespace moe;
using namespace moe::test;

namespace {

// A matrix of a float type whose rows lie `stride` elements apart; the gaps are NaN.
struct Matrix {
  Matrix(int64_t row_count, int64_t column_count, DType type, uint64_t stream, int64_t gap = 0)
      : rows(row_count), columns(column_count), stride(column_count + gap), dtype(type) {
    std::mt19937_64 random(seed() * 31 + stream);
    std::normal_distribution<float> normal;
    bytes.resize(rows * stride * bits_of(type) / 8, 0xff);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        store_float(type, bytes.data(), r * stride + c, normal(random));
  }
  float at(int64_t r, int64_t c) const { return load_float(dtype, bytes.data(), r * stride + c); }
  TensorView view() const {
    return {bytes.data(), dtype, {rows, columns}, {stride, 1}, Device::cpu()};
  }
  TensorView view(int64_t row) const {
    const int64_t size = bits_of(dtype) / 8;
    return {bytes.data() + row * stride * size, dtype, {1, columns}, {stride, 1}, Device::cpu()};
  }
  int64_t rows, columns, stride;
  DType dtype;
  std::vector<unsigned char> bytes;
};

std::unique_ptr<Router> make(const RouterSpec& spec, const RouterWeights& weights = {}) {
  auto router = Router::create(spec, weights);
  INFO(router.status().message());
  REQUIRE(router.ok());
  return *std::move(router);
}

Routed route(const Router& router, const TensorView& hidden, RouteInput input = {}) {
  input.hidden = hidden;
  Routed routed = run_router(router, input);
  INFO(routed.status.message());
  REQUIRE(routed.status.ok());
  return routed;
}

// All logits, through a rule that returns them as weights.
std::vector<float> logits_of(RouterSpec spec, const RouterWeights& weights,
                             const TensorView& hidden) {
  spec.top_k = spec.candidates();
  spec.scoring = Scoring::identity;
  const Routed routed = route(*make(spec, weights), hidden);
  std::vector<float> logits(routed.ids.size());
  for (size_t at = 0; at < logits.size(); ++at)
    logits[at / spec.top_k * spec.top_k + routed.ids[at]] = routed.weights[at];
  return logits;
}

}  // namespace

TEST_CASE("logits are the matrix product, for every type and shape", "[router]") {
  const DType types[] = {DType::f32, DType::bf16, DType::f16};
  int shape = 0;
  for (DType weight_type : types)
    for (DType hidden_type : types)
      for (auto [tokens, candidates, hidden] : {std::array<int64_t, 3>{1, 1, 1},
                                                {3, 5, 7},
                                                {2, 64, 257},
                                                {67, 9, 130},
                                                {1, 130, 1031}}) {
        INFO(to_string(weight_type) << " x " << to_string(hidden_type) << " " << tokens << " "
                                    << candidates << " " << hidden);
        ++shape;
        const Matrix w(candidates, hidden, weight_type, 2 * shape, shape % 3);
        const Matrix x(tokens, hidden, hidden_type, 2 * shape + 1, shape % 5);
        std::vector<float> bias(candidates);
        for (int64_t c = 0; c < candidates; ++c) bias[c] = 0.1f * static_cast<float>(c % 7) - 0.3f;
        const bool biased = shape % 2 == 0;
        RouterWeights weights{.weight = w.view()};
        if (biased) weights.logit_bias = TensorView(bias.data(), DType::f32, {candidates});
        const auto logits =
            logits_of({.num_experts = static_cast<int32_t>(candidates)}, weights, x.view());
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t c = 0; c < candidates; ++c) {
            double wanted = biased ? bias[c] : 0, size = std::abs(wanted);
            for (int64_t h = 0; h < hidden; ++h) {
              wanted += static_cast<double>(x.at(t, h)) * w.at(c, h);
              size += std::abs(static_cast<double>(x.at(t, h)) * w.at(c, h));
            }
            REQUIRE(std::abs(logits[t * candidates + c] - wanted) <= 1e-6 * size);
          }
      }
}

TEST_CASE("Gemma 4's router reads normalised rows", "[router]") {
  const int64_t hidden = 37;
  const Matrix w(6, hidden, DType::bf16, 1), x(4, hidden, DType::bf16, 2),
      scale(1, hidden, DType::f32, 3);
  RouterSpec spec{.num_experts = 6, .normalize_input = true, .input_norm_epsilon = 1e-3f};
  const RouterWeights weights{.weight = w.view(),
                              .input_scale = TensorView(scale.bytes.data(), DType::f32, {hidden})};
  const auto logits = logits_of(spec, weights, x.view());
  const auto unscaled = logits_of(spec, {.weight = w.view()}, x.view());
  for (int64_t t = 0; t < 4; ++t) {
    double squares = 0;
    for (int64_t h = 0; h < hidden; ++h) squares += std::pow(x.at(t, h), 2.);
    const double norm = 1 / std::sqrt(squares / hidden + 1e-3f);
    for (int64_t e = 0; e < 6; ++e) {
      double wanted = 0, plain = 0;
      for (int64_t h = 0; h < hidden; ++h) {
        const double term = x.at(t, h) * norm / std::sqrt(static_cast<double>(hidden)) * w.at(e, h);
        wanted += term * scale.at(0, h);
        plain += term;
      }
      CHECK(logits[t * 6 + e] == Approx(wanted).margin(1e-6));
      CHECK(unscaled[t * 6 + e] == Approx(plain).margin(1e-6));
    }
  }
}

TEST_CASE("a row's bits depend on no other row and no number of threads", "[router][mission-13]") {
  const Matrix w(160, 333, DType::bf16, 1), x(203, 333, DType::f32, 2, 3);
  const auto router = make({.num_experts = 160,
                            .top_k = 7,
                            .scoring = Scoring::sigmoid,
                            .num_groups = 8,
                            .top_groups = 3,
                            .group_score = GroupScore::top2_sum,
                            .normalize = Normalize::sum_plus_epsilon},
                           {.weight = w.view()});
  const Routed alone = route(*router, x.view());
  for (int threads : {1, 2, 3}) {
    auto executor = make_executor(threads);
    REQUIRE(executor.ok());
    const Routed shared = route(*router, x.view(), {.executor = executor->get()});
    CHECK(same_bits(shared, alone));
  }
  for (int64_t row : {0, 1, 62, 63, 64, 65, 202}) {
    const Routed one = route(*router, x.view(row));
    CHECK(std::memcmp(one.ids.data(), &alone.ids[row * 7], 7 * sizeof(int32_t)) == 0);
    CHECK(std::memcmp(one.weights.data(), &alone.weights[row * 7], 7 * sizeof(float)) == 0);
  }
}

TEST_CASE("counts are the same on every number of threads", "[router]") {
  std::vector<float> logits(500 * 4, 1.f);
  for (int row = 0; row < 500; row += 10) logits[row * 4] = NAN;
  for (int row = 5; row < 500; row += 50)
    for (int e = 0; e < 3; ++e) logits[row * 4 + e] = -INFINITY;
  const auto router = make({.num_experts = 4, .top_k = 2, .capacity = 100});
  const Routed alone = route_logits(*router, logits, 4);
  CHECK(alone.counts.nonfinite_rows == 60);
  CHECK(alone.counts.short_rows == 10);
  CHECK(alone.counts.dropped > 0);
  auto executor = make_executor(3);
  REQUIRE(executor.ok());
  const Routed shared = route_logits(*router, logits, 4, {.executor = executor->get()});
  CHECK(same_bits(alone, shared));
  CHECK(shared.counts.nonfinite_rows == 60);
  CHECK(shared.counts.short_rows == 10);
  CHECK(shared.counts.dropped == alone.counts.dropped);
}

TEST_CASE("logits of any float type route as their f32 values", "[router]") {
  const RouterSpec spec{.num_experts = 24, .top_k = 5};
  const auto router = make(spec);
  for (DType type : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
    const Matrix logits(9, 24, type, 5, 2);
    std::vector<float> values;
    for (int64_t t = 0; t < 9; ++t)
      for (int64_t e = 0; e < 24; ++e) values.push_back(logits.at(t, e));
    RouteInput input{.logits = logits.view()};
    const Routed routed = run_router(*router, input);
    REQUIRE(routed.status.ok());
    CHECK(same_bits(routed, route_logits(*router, values, 24)));
  }
}

TEST_CASE("top_k at run time equals a spec configured so", "[router][mission-24]") {
  const Matrix w(48, 65, DType::f32, 1), x(40, 65, DType::f32, 2);
  RouterSpec spec{.num_experts = 48,
                  .top_k = 8,
                  .scoring = Scoring::sigmoid,
                  .normalize = Normalize::sum_plus_epsilon,
                  .scaling = 2.5f};
  const auto router = make(spec, {.weight = w.view()});
  for (int32_t k : {1, 2, 7, 8, 9, 33, 48}) {
    RouterSpec configured = spec;
    configured.top_k = k;
    const Routed expected = route(*make(configured, {.weight = w.view()}), x.view());
    CHECK(same_bits(route(*router, x.view(), {.top_k = k}), expected));
  }
}

TEST_CASE("a masked expert is as if its logit were -inf, but not counted", "[router][mission-25]") {
  for (Scoring scoring : {Scoring::softmax, Scoring::sigmoid}) {
    const auto router = make({.num_experts = 40,
                              .top_k = 6,
                              .scoring = scoring,
                              .num_groups = 4,
                              .top_groups = 2,
                              .normalize = Normalize::sum_plus_epsilon});
    Matrix random(50, 40, DType::f32, 1);
    std::vector<float> logits, masked;
    std::vector<uint8_t> mask;
    for (int64_t t = 0; t < 50; ++t)
      for (int64_t e = 0; e < 40; ++e) {
        mask.push_back((t * 7 + e * 13) % 5 != 0);
        logits.push_back(random.at(t, e));
        masked.push_back(mask.back() ? logits.back() : -INFINITY);
      }
    const Routed routed = route_logits(*router, logits, 40, {.expert_mask = mask.data()});
    const Routed expected = route_logits(*router, masked, 40);
    CHECK(same_bits(routed, expected));
    CHECK(routed.counts.nonfinite_rows == 0);
    CHECK(expected.counts.nonfinite_rows == 50);
    for (size_t at = 0; at < routed.ids.size(); ++at) {  // disallowed experts receive no rows
      REQUIRE(routed.ids[at] >= 0);
      CHECK(mask[at / 6 * 40 + routed.ids[at]] == 1);
    }
  }
}

TEST_CASE("logits that are given equal those computed", "[router][mission-23]") {
  const Matrix w(33, 70, DType::bf16, 1), x(21, 70, DType::bf16, 2);
  std::vector<float> bias(33, 0.25f);
  const RouterWeights weights{.weight = w.view(),
                              .logit_bias = TensorView(bias.data(), DType::f32, {33})};
  RouterSpec spec{.num_experts = 33, .top_k = 4};
  const auto logits = logits_of(spec, weights, x.view());
  const auto router = make(spec, weights);
  CHECK(same_bits(route_logits(*router, logits, 33), route(*router, x.view())));
}

TEST_CASE("routing allocates nothing", "[router]") {
  const Matrix w(64, 128, DType::bf16, 1), x(130, 128, DType::bf16, 2);
  const auto router =
      make({.num_experts = 64, .top_k = 8, .num_groups = 4, .top_groups = 2}, {.weight = w.view()});
  const size_t bytes = router->workspace_bytes(130, 1);
  AlignedBytes workspace(bytes);
  std::vector<int32_t> ids(130 * 8);
  std::vector<float> out(130 * 8);
  RouteInput input{.hidden = x.view(), .workspace = workspace.span(bytes)};
  RouteCounts counts;
  for (int repeat = 0; repeat < 2; ++repeat) {
    const int64_t before = allocations();
    const Status status = router->route(input, {130, 8, ids.data(), out.data()}, &counts);
    CHECK(allocations() == before);
    REQUIRE(status.ok());
  }
}

TEST_CASE("the workspace is not overrun", "[router]") {
  const Matrix w(50, 77, DType::f16, 1), x(70, 77, DType::f16, 2), scale(1, 77, DType::f32, 3);
  const auto router =
      make({.num_experts = 50,
            .top_k = 3,
            .num_groups = 5,
            .top_groups = 2,
            .normalize_input = true,
            .capacity = 4},
           {.weight = w.view(), .input_scale = TensorView(scale.bytes.data(), DType::f32, {77})});
  const size_t bytes = router->workspace_bytes(70, 1);
  CHECK(router->workspace_bytes(1 << 20, 1) == bytes);  // works in chunks of 64 rows
  AlignedBytes workspace(bytes + 256);
  std::vector<int32_t> ids(70 * 3);
  std::vector<float> out(70 * 3);
  RouteInput input{.hidden = x.view(), .workspace = workspace.span(bytes)};
  REQUIRE(router->route(input, {70, 3, ids.data(), out.data()}, nullptr).ok());
  for (std::byte value : workspace.span(bytes + 256).subspan(bytes))
    REQUIRE(value == std::byte{0xa5});
}

TEST_CASE("no tokens is fine", "[router]") {
  const Matrix w(4, 8, DType::f32, 1);
  const auto router = make({.num_experts = 4, .top_k = 2}, {.weight = w.view()});
  RouteInput input{.hidden = TensorView(nullptr, DType::bf16, {0, 8})};
  CHECK(router->route(input, {0, 2, nullptr, nullptr}, nullptr).ok());
}

namespace {

// What the issue calls a user's router: every token goes to the experts that follow its number.
class RoundRobin final : public Router {
 public:
  explicit RoundRobin(RouterSpec spec) : spec_(spec) {}
  const RouterSpec& spec() const noexcept override { return spec_; }
  Status route(const RouteInput&, const Routing& out, RouteCounts*) const override {
    for (int64_t t = 0; t < out.tokens; ++t)
      for (int32_t place = 0; place < out.top_k; ++place) {
        out.ids[t * out.top_k + place] = static_cast<int32_t>((t + place) % spec_.num_experts);
        out.weights[t * out.top_k + place] = 1.f / static_cast<float>(out.top_k);
      }
    return {};
  }

 private:
  RouterSpec spec_;
};

}  // namespace

TEST_CASE("a router of one's own plugs in", "[router][mission-23]") {
  const RoundRobin mine({.num_experts = 3, .top_k = 2});
  const Router& router = mine;
  CHECK(router.workspace_bytes(100, 4) == 0);
  const Matrix x(4, 8, DType::f32, 1);
  const Routed routed = route(router, x.view());
  CHECK(routed.ids == std::vector<int32_t>{0, 1, 1, 2, 2, 0, 0, 1});
  CHECK(routed.weights == std::vector<float>(8, 0.5f));
}
