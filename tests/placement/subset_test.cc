// Planning for experts that are active together, against exhaustive search and published tables.
#include <cmath>
#include <fstream>
#include <functional>

#include "helpers.h"

using namespace moe;
using namespace moe::test;

namespace {

UsageTrace mixtral_pairs() { return shared_usage("mixtral_vllm/pair_counts.csv"); }

double mean_time(const UsageTrace& usage, const Cluster& cluster, const Placement& placement) {
  double sum = 0;
  for (size_t l = 0; l < usage.layers.size(); ++l)
    sum += must(expected_set_time(usage.layers[l], cluster, placement.layers[l]));
  return sum / static_cast<double>(usage.layers.size());
}

// Fewest experts on the busiest rank, by trying every choice of copies.
int32_t brute_time(std::span<const int32_t> set, const std::vector<uint32_t>& holders, int ranks) {
  std::vector<int32_t> load(ranks, 0);
  int32_t best = static_cast<int32_t>(set.size());
  std::function<void(size_t, int32_t)> place = [&](size_t i, int32_t busiest) {
    if (busiest >= best) return;
    if (i == set.size()) return void(best = busiest);
    for (int r = 0; r < ranks; ++r) {
      if (!((holders[set[i]] >> r) & 1)) continue;
      ++load[r];
      place(i + 1, std::max(busiest, load[r]));
      --load[r];
    }
  };
  place(0, 0);
  return best;
}

// The optimum over all placements, by trying them.
double brute_cost(const ExpertSets& sets, int32_t experts, const std::vector<int32_t>& slots) {
  const int ranks = static_cast<int>(slots.size());
  std::vector<uint32_t> holders(experts);
  std::vector<int32_t> room = slots;
  double best = 1e300;
  std::function<void(int32_t)> place = [&](int32_t e) {
    if (e == experts) {
      double cost = 0;
      for (int64_t i = 0; i < sets.size(); ++i)
        cost += sets.counts[i] * brute_time(sets[i], holders, ranks);
      best = std::min(best, cost);
      return;
    }
    for (uint32_t mask = 1; mask < 1u << ranks; ++mask) {
      bool fits = true;
      for (int r = 0; r < ranks; ++r) fits = fits && (!((mask >> r) & 1) || room[r] > 0);
      if (!fits) continue;
      for (int r = 0; r < ranks; ++r) room[r] -= (mask >> r) & 1;
      holders[e] = mask;
      place(e + 1);
      for (int r = 0; r < ranks; ++r) room[r] += (mask >> r) & 1;
    }
  };
  place(0);
  return best / sets.total();
}

ExpertSets random_sets(placement::Random& random, int32_t experts, int32_t size, int count) {
  ExpertSets sets;
  for (int i = 0; i < count; ++i) {
    std::vector<int32_t> set;
    while (static_cast<int32_t>(set.size()) < size) {
      const auto e = static_cast<int32_t>(random.below(experts));
      if (std::find(set.begin(), set.end(), e) == set.end()) set.push_back(e);
    }
    std::sort(set.begin(), set.end());
    const double u = random.uniform();
    sets.add(set, 1 + std::floor(100 * u * u * u));
  }
  return sets;
}

UsageTrace with_sets(ExpertSets sets, int32_t experts) {
  std::vector<double> tokens(experts, 0.0);
  for (int64_t i = 0; i < sets.size(); ++i)
    for (int32_t e : sets[i]) tokens[e] += sets.counts[i];
  return one_layer(std::move(tokens), std::move(sets));
}

}  // namespace

TEST_CASE("the Mixtral pair table: exact, heuristic, linear",
          "[placement][mission-75][mission-76]") {
  if (!have_shared()) return skip("../shared is absent");
  const UsageTrace usage = mixtral_pairs();
  REQUIRE(usage.layers.size() == 32);
  const double optimum[] = {1.2986, 1.0923, 1.0124, 1.0, 1.0};
  for (int32_t slots = 4; slots <= 8; ++slots) {
    INFO(slots << " experts per rank");
    const Cluster cluster = must(Cluster::uniform(2, slots));
    PlacementProblem problem{usage, cluster};
    problem.workload.tokens_per_step = 1;
    double exact = 0;
    for (const LayerUsage& layer : usage.layers) {
      const ExactLayer solved = must(solve_subset_exact(layer, cluster));
      CHECK(solved.proved);
      CHECK(solved.cost == Approx(must(expected_set_time(layer, cluster, solved.placement))));
      exact += solved.cost / 32;
    }
    CHECK(std::round(exact * 1e4) / 1e4 == Approx(optimum[slots - 4]).margin(1e-9));
    const double heuristic = mean_time(usage, cluster, must(place_subset(problem)));
    std::printf("mixtral, %d per rank: exact %.4f, heuristic %.4f, linear %.4f\n", slots, exact,
                heuristic, mean_time(usage, cluster, must(place_linear(problem))));
    CHECK(heuristic <= exact * 1.005);
    if (slots == 4)
      CHECK(mean_time(usage, cluster, must(place_linear(problem))) == Approx(1.4265).margin(5e-5));
  }
}

TEST_CASE("1,000 small cases: branch and bound equals enumeration; greedy's ratio",
          "[placement][mission-73][mission-75][mission-76]") {
  placement::Random random(seed());
  double worst = 1, sum = 0;
  int cases = 0;
  for (int i = 0; i < 1000; ++i) {
    const int ranks = 2 + static_cast<int>(random.below(2));
    const int experts = ranks == 2 ? 5 + static_cast<int>(random.below(3)) : 4;
    std::vector<int32_t> slots;
    int total = 0;
    while (total < experts) {
      slots.assign(ranks, 0);
      total = 0;
      for (int32_t& s : slots) total += s = 1 + static_cast<int32_t>(random.below(5));
    }
    const int size = 2 + static_cast<int>(random.below(2));
    const UsageTrace usage = with_sets(
        random_sets(random, experts, size, 4 + static_cast<int>(random.below(8))), experts);
    Cluster cluster;
    cluster.slots = slots;
    const ExactLayer solved = must(solve_subset_exact(usage.layers[0], cluster));
    const double brute = brute_cost(usage.layers[0].sets, experts, slots);
    REQUIRE(solved.proved);
    REQUIRE(solved.cost == Approx(brute).epsilon(1e-9));
    PlacementProblem problem{usage, cluster};
    problem.workload.tokens_per_step = 1;
    const Placement heuristic = must(place_subset(problem));
    REQUIRE(validate(heuristic, cluster, usage).ok());
    const double ratio = mean_time(usage, cluster, heuristic) / brute;
    REQUIRE(ratio >= 1 - 1e-9);
    worst = std::max(worst, ratio);
    sum += ratio;
    ++cases;
  }
  std::printf("subset heuristic over optimum, %d cases: mean %.5f, worst %.5f\n", cases,
              sum / cases, worst);
  CHECK(sum / cases < 1.005);
}

TEST_CASE("unseen halves of the Mixtral trace: planned on one, scored on the other",
          "[placement][mission-76][mission-78]") {
  if (!have_shared()) return skip("../shared is absent");
  std::string halves[2];
  for (const char* name : {"humaneval_2", "gsm8k_2"}) {
    std::ifstream file(shared_dir() + "/traces/mixtral_vllm/" + name + "_routing.jsonl");
    int64_t number = 0;
    for (std::string line; std::getline(file, line);) halves[number++ % 2] += line + "\n";
  }
  const UsageTrace half[2] = {must(parse_usage(halves[0], "even", {.experts = 8})),
                              must(parse_usage(halves[1], "odd", {.experts = 8}))};
  for (int32_t slots = 4; slots <= 6; ++slots) {
    const Cluster cluster = must(Cluster::uniform(2, slots));
    double subset = 0, linear = 0, eplb = 0;
    for (int train = 0; train < 2; ++train) {
      PlacementProblem problem{half[train], cluster};
      problem.workload.tokens_per_step = 1;
      const UsageTrace& unseen = half[1 - train];
      subset += mean_time(unseen, cluster, must(place_subset(problem))) / 2;
      linear += mean_time(unseen, cluster, must(place_linear(problem))) / 2;
      eplb += mean_time(unseen, cluster, must(place_eplb_global(problem))) / 2;
    }
    std::printf("mixtral unseen, %d per rank: subset %.4f, linear %.4f, EPLB %.4f\n", slots, subset,
                linear, eplb);
    CHECK(subset < linear);
    CHECK(subset < eplb);
  }
}
