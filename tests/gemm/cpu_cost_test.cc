// What experts are predicted to cost: in order, additive, and split between CPU and copies as well
// as can be.
#include "moe/cpu_cost.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "catch.h"

using namespace moe;

namespace {

using Random = std::mt19937_64;

double uniform(Random& random) { return std::uniform_real_distribution<double>(0.1, 1)(random); }

// As measured: more rows take longer, more threads less long.
CpuCost random_cost(Random& random) {
  CpuCost cost;
  double speed = 1;
  for (int threads : {1, 2, 4, 6}) {
    speed *= 1 + uniform(random);
    CpuRates rates{.threads = threads, .job_ns = 1000 * uniform(random)};
    rates.read_ns_per_weight = 0.2 / speed;
    double ns = 0.01 / speed;
    for (int64_t rows = 1; rows <= 256; rows *= 2, ns *= 1 + 0.5 / speed)
      rates.compute.push_back({rows, ns});
    if (!cost.rates.empty())
      for (size_t i = 0; i < rates.compute.size(); ++i)
        rates.compute[i].ns_per_weight =
            std::min(rates.compute[i].ns_per_weight, cost.rates.back().compute[i].ns_per_weight);
    cost.rates.push_back(rates);
  }
  return cost;
}

constexpr ExpertSpec kSpec{.hidden = 64, .intermediate = 100};
constexpr double kWeights = 3.0 * 64 * 100;

}  // namespace

TEST_CASE("more rows never cost less, more threads never more", "[gemm][mission-91]") {
  Random random(test::seed());
  for (int i = 0; i < 20; ++i) {
    const CpuCost cost = random_cost(random);
    for (int threads = 1; threads <= 8; ++threads)
      for (int64_t rows = 0; rows < 600; rows += 1 + rows / 8) {
        CAPTURE(threads, rows);
        const double ns = expert_ns(cost, kSpec, rows, threads);
        CHECK(ns <= expert_ns(cost, kSpec, rows + 1, threads) * (1 + 1e-12));
        CHECK(ns * (1 + 1e-12) >= expert_ns(cost, kSpec, rows, threads + 1));
        CHECK((ns > 0) == (rows > 0));
      }
  }
}

TEST_CASE("what was measured is what is predicted", "[gemm][mission-91]") {
  Random random(test::seed());
  const CpuCost cost = random_cost(random);
  for (const CpuRates& rates : cost.rates) {
    for (const CpuRates::Point& point : rates.compute)
      CHECK(expert_ns(cost, kSpec, point.rows, rates.threads) ==
            kWeights * std::max(point.ns_per_weight, rates.read_ns_per_weight));
    const double last = rates.compute.back().ns_per_weight;
    if (last > rates.read_ns_per_weight)
      CHECK(std::fabs(expert_ns(cost, kSpec, 512, rates.threads) / (kWeights * 2 * last) - 1) <
            1e-12);
    const int64_t rows[] = {3, 0, 40, 1};
    double sum = rates.job_ns;
    for (int64_t n : rows) sum += expert_ns(cost, kSpec, n, rates.threads);
    CHECK(std::fabs(batch_ns(cost, kSpec, rows, rates.threads) / sum - 1) < 1e-12);
  }
  CHECK(batch_ns(cost, kSpec, {}, 2) == 0);
  const ExpertSpec plain{.hidden = 64, .intermediate = 100, .gated = false};
  CHECK(std::fabs(expert_ns(cost, plain, 9, 3) * 1.5 / expert_ns(cost, kSpec, 9, 3) - 1) < 1e-12);
}

TEST_CASE("no split between CPU and copies ends earlier", "[gemm][mission-91]") {
  Random random(test::seed());
  for (int i = 0; i < 300; ++i) {
    std::vector<double> cpu(random() % 11);
    for (double& ns : cpu) ns = std::floor(uniform(random) * 20);  // ties too
    const double copy = std::floor(uniform(random) * 20);
    const auto end = [&](const auto& on_cpu) {
      double sums[2] = {};
      for (size_t e = 0; e < cpu.size(); ++e) sums[on_cpu(e)] += on_cpu(e) ? cpu[e] : copy;
      return std::max(sums[0], sums[1]);
    };
    double best = INFINITY;
    int fewest = 0;
    for (uint32_t set = 0; set < 1u << cpu.size(); ++set) {
      const double ns = end([&](size_t e) { return (set >> e & 1) != 0; });
      const int on_cpu = __builtin_popcount(set);
      if (ns < best || (ns == best && on_cpu < fewest)) best = ns, fewest = on_cpu;
    }
    const CpuShare share = choose_for_cpu(cpu, copy);
    REQUIRE(share.on_cpu.size() == cpu.size());
    CHECK(share.ns == best);
    CHECK(end([&](size_t e) -> bool { return share.on_cpu[e]; }) == best);
    CHECK(std::count(share.on_cpu.begin(), share.on_cpu.end(), true) == fewest);
  }
}

TEST_CASE("rates of every format are measured, or refused with a sentence", "[gemm][mission-91]") {
  const CpuCostOptions quick{.memory = 0, .most_rows = 8, .samples = 1};
  for (const Format& format : {Format{FormatKind::bf16}, Format{FormatKind::int4, 32}}) {
    const auto cost = measure_cpu_cost(format, 3, quick);
    INFO(cost.status().message());
    REQUIRE(cost.ok());
    CHECK(cost->format == format);
    REQUIRE(cost->rates.size() == 3);
    for (size_t i = 0; i < 3; ++i) {
      const CpuRates& rates = cost->rates[i];
      CHECK(rates.threads == static_cast<int>(i) + 1);
      CHECK((rates.job_ns > 0 && rates.read_ns_per_weight > 0));
      REQUIRE(!rates.compute.empty());
      CHECK((rates.compute[0].rows == 1 && rates.compute[0].ns_per_weight > 0));
    }
    CHECK(expert_ns(*cost, kSpec, 1, 1) <= expert_ns(*cost, kSpec, 300, 1));
    CHECK(expert_ns(*cost, kSpec, 300, 3) <= expert_ns(*cost, kSpec, 300, 1));
  }
  CHECK(measure_cpu_cost({FormatKind::nvfp4}, 1, quick).status().code() ==
        StatusCode::unimplemented);
  CHECK(measure_cpu_cost({}, -1, quick).status().code() == StatusCode::invalid_argument);
  CHECK(measure_cpu_cost({}, 1, {.most_rows = 0}).status().code() == StatusCode::invalid_argument);
  CHECK(measure_cpu_cost({}, 1, {.samples = 0}).status().code() == StatusCode::invalid_argument);
}
