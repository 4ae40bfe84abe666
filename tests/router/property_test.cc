// Random rules on random and adversarial rows, against the oracle.
#include <cfloat>
#include <cstdio>
#include <limits>
#include <random>
#include <string>

#include "catch.h"
#include "oracle.h"
#include "run_router.h"

using namespace moe;
using namespace moe::test;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  bool one_in(int64_t n) { return below(n) == 0; }
  float normal(float sigma) { return std::normal_distribution<float>(0, sigma)(engine_); }
  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[below(static_cast<int64_t>(values.size()))];
  }

 private:
  std::mt19937_64 engine_;
};

RouterSpec random_spec(Random& random) {
  RouterSpec s;
  s.num_experts = random.one_in(12)
                      ? random.pick({1024, 4096})
                      : random.pick({1, 2, 3, 8, 31, 32, 33, 60, 64, 100, 128, 160, 256, 257, 384});
  if (random.one_in(4)) s.num_zero_experts = random.pick({1, 16, 64});
  const int32_t n = s.candidates();
  s.top_k = static_cast<int32_t>(1 + random.below(std::min(n, random.one_in(10) ? 80 : 32)));
  s.scoring = static_cast<Scoring>(random.below(4));
  s.weighting = static_cast<Weighting>(random.below(3));
  s.normalize = static_cast<Normalize>(random.below(4));
  s.epsilon = random.pick({0.f, 1e-20f, 1e-12f, 1e-6f, 0.5f});
  s.norm_power = random.pick({1.f, 2.f, 3.f, 0.5f});
  s.scaling = random.pick({1.f, 2.5f, 16.f, -1.f});
  if (random.one_in(4)) s.softcap = random.pick({30.f, 5.f, 0.5f});
  if (random.one_in(8) && s.top_k <= 2) {
    s.selection = Selection::sparsemixer;
    s.weighting = Weighting::score;
    s.sparsemixer_epsilon = random.pick({0.01f, 0.1f});
  } else if (random.one_in(8)) {
    s.selection = Selection::token_lookup;
  } else if (random.one_in(2)) {
    s.num_groups = random.pick({2, 3, 4, 8, 16, 64});
    s.group_score = static_cast<GroupScore>(random.below(2));
    const int32_t size = n / s.num_groups;
    if (size < 2 || n % s.num_groups != 0) return s.num_groups = 1, s;
    const int32_t least = (s.top_k + size - 1) / size;
    s.top_groups = static_cast<int32_t>(least + random.below(s.num_groups - least + 1));
  }
  return s;
}

enum RowKind { kNormal, kWide, kTies, kEqual, kDenormal, kHuge, kSprinkled, kAlmostGone, kGone };
constexpr int kRowKinds = 9;

std::vector<float> random_row(Random& random, int32_t n, int kind) {
  std::vector<float> row(n);
  for (float& l : row) switch (kind) {
      case kNormal: l = random.normal(1); break;
      case kWide: l = random.normal(40); break;
      case kTies: l = static_cast<float>(random.below(5)) * 0.25f - 0.5f; break;
      case kEqual: l = 1.5f; break;
      case kDenormal: l = random.normal(1) * FLT_TRUE_MIN * 100; break;
      case kHuge:
        l = random.pick({FLT_MAX, -FLT_MAX, 1e38f, 0.f, -0.f, random.normal(1e30f)});
        break;
      case kSprinkled:
        l = random.one_in(4) ? random.pick({kNan, -kNan, kInf, -kInf}) : random.normal(2);
        break;
      case kAlmostGone: l = kNan; break;
      default: l = random.pick({kNan, -kInf}); break;
    }
  if (kind == kAlmostGone) row[random.below(n)] = random.normal(1);
  return row;
}

struct Problem {
  OracleRule rule;
  std::vector<OracleRow> rows;
  std::vector<int64_t> table, token_ids;
  std::vector<float> logits;
  std::vector<uint8_t> mask;
};

Problem random_problem(Random& random) {
  Problem p;
  p.rule.spec = random_spec(random);
  const RouterSpec& spec = p.rule.spec;
  const int32_t n = spec.candidates();
  p.rule.top_k = spec.top_k;
  if (spec.selection == Selection::top_k && random.one_in(2)) {
    const float shift = random.pick({0.f, -3.f});
    for (int i = 0; i < n; ++i) p.rule.selection_bias.push_back(shift + random.normal(0.3f));
  }
  if (random.one_in(4))
    for (int i = 0; i < n; ++i) p.rule.per_expert_scale.push_back(0.5f + random.normal(0.2f));
  const bool masked = random.one_in(3);
  for (int kind = 0; kind < kRowKinds; ++kind) {
    OracleRow row{random_row(random, n, kind), {}, {}};
    if (masked)
      for (int i = 0; i < n; ++i) row.mask.push_back(!random.one_in(3));
    for (int place = 0; place < spec.top_k; ++place)  // distinct: a start and an odd step
      row.lookup.push_back((kind * 7 + place) % n);
    p.logits.insert(p.logits.end(), row.logits.begin(), row.logits.end());
    p.mask.insert(p.mask.end(), row.mask.begin(), row.mask.end());
    p.table.insert(p.table.end(), row.lookup.begin(), row.lookup.end());
    p.token_ids.push_back(kind);
    p.rows.push_back(std::move(row));
  }
  return p;
}

TensorView view(const std::vector<float>& values) {
  if (values.empty()) return {};
  return {values.data(), DType::f32, {static_cast<int64_t>(values.size())}};
}

Routed route(const Problem& p) {
  const RouterSpec& spec = p.rule.spec;
  RouterWeights weights;
  weights.selection_bias = view(p.rule.selection_bias);
  weights.per_expert_scale = view(p.rule.per_expert_scale);
  RouteInput input;
  if (!p.mask.empty()) input.expert_mask = p.mask.data();
  if (spec.selection == Selection::token_lookup) {
    weights.token_experts = TensorView(p.table.data(), DType::i64, {kRowKinds, spec.top_k});
    input.token_ids = p.token_ids.data();
  }
  auto router = Router::create(spec, weights);
  INFO(router.status().message());
  REQUIRE(router.ok());
  Routed routed = route_logits(**router, p.logits, spec.candidates(), input);
  INFO(routed.status.message());
  REQUIRE(routed.status.ok());
  return routed;
}

// Rounding of a score can go either way only where two keys are neighbours as floats.
bool neighbours(long double a, long double b) {
  return a != b && std::abs(a - b) <= 4e-7L * std::max(std::abs(a), std::abs(b));
}

// Whether another choice than the oracle's could be right: groups, or keys at the place, nearly
// tie.
bool near_tie(const OracleChoice& expected, const int32_t* ids, int32_t top_k) {
  for (size_t a = 0; a < expected.group_keys.size(); ++a)
    for (size_t b = 0; b < a; ++b)
      if (neighbours(expected.group_keys[a], expected.group_keys[b])) return true;
  for (int32_t place = 0; place < top_k; ++place)
    if (ids[place] != expected.ids[place])
      return ids[place] >= 0 && expected.ids[place] >= 0 &&
             neighbours(expected.keys[ids[place]], expected.keys[expected.ids[place]]);
  return false;
}

// In units of the last place of the float nearest to `wanted`.
double ulps(float got, long double wanted) {
  const float nearest = static_cast<float>(wanted);
  if (std::isinf(nearest) || std::isnan(nearest)) return got == nearest ? 0 : 1e9;
  const float magnitude = std::abs(nearest);
  const float ulp = magnitude == FLT_MAX ? 0x1p104f : std::nextafter(magnitude, kInf) - magnitude;
  return static_cast<double>(std::abs(got - wanted) / ulp);
}

// A sum that nearly cancels has no accurate inverse.
bool well_conditioned(const OracleRule& rule) {
  return rule.spec.scoring != Scoring::identity || rule.spec.weighting != Weighting::score ||
         rule.spec.normalize == Normalize::none || rule.spec.normalize == Normalize::p_norm;
}

std::string describe(const RouterSpec& s) {
  return "E " + std::to_string(s.num_experts) + "+" + std::to_string(s.num_zero_experts) + " k " +
         std::to_string(s.top_k) + " scoring " + std::to_string(int(s.scoring)) + " selection " +
         std::to_string(int(s.selection)) + " groups " + std::to_string(s.top_groups) + "/" +
         std::to_string(s.num_groups) + " by " + std::to_string(int(s.group_score)) +
         " weighting " + std::to_string(int(s.weighting)) + " normalize " +
         std::to_string(int(s.normalize)) + " epsilon " + std::to_string(s.epsilon) + " p " +
         std::to_string(s.norm_power) + " softcap " + std::to_string(s.softcap);
}

}  // namespace

TEST_CASE("random rules on random rows choose and weigh as the oracle", "[router][mission-13]") {
  Random random(seed());
  int rows = 0, near_ties = 0, nonfinite = 0, short_rows = 0;
  double worst = 0;
  for (int repeat = 0; repeat < 600; ++repeat) {
    const Problem p = random_problem(random);
    INFO("problem " << repeat << ": " << describe(p.rule.spec));
    const Routed routed = route(p);
    const int32_t k = routed.top_k;
    nonfinite = short_rows = 0;
    for (size_t r = 0; r < p.rows.size(); ++r) {
      INFO("row kind " << r);
      ++rows;
      const OracleChoice expected = oracle(p.rule, p.rows[r]);
      nonfinite += expected.nonfinite;
      short_rows += expected.chosen < k;
      const int32_t* ids = &routed.ids[r * k];
      std::vector<bool> seen(p.rule.spec.candidates());
      for (int32_t place = 0; place < k; ++place) {
        REQUIRE((place < expected.chosen) == (ids[place] >= 0));
        if (ids[place] < 0) continue;
        REQUIRE(ids[place] < p.rule.spec.candidates());
        REQUIRE_FALSE(seen[ids[place]]);
        seen[ids[place]] = true;
      }
      if (!std::equal(ids, ids + k, expected.ids.begin())) {
        REQUIRE(near_tie(expected, ids, k));
        ++near_ties;
        continue;
      }
      for (int32_t place = 0; place < k; ++place) {
        if (ids[place] < 0) REQUIRE(routed.weights[r * k + place] == 0);
        if (!well_conditioned(p.rule)) continue;
        const double error = ulps(routed.weights[r * k + place], expected.weights[place]);
        INFO(routed.weights[r * k + place] << " instead of " << double(expected.weights[place]));
        REQUIRE(error <= 0.51);
        worst = std::max(worst, error);
      }
    }
    REQUIRE(routed.counts.nonfinite_rows == nonfinite);
    REQUIRE(routed.counts.short_rows == short_rows);
  }
  std::printf("%d rows, %d near ties, worst weight %.5f ulp\n", rows, near_ties, worst);
  CHECK(near_ties < rows / 200);
}
