// Planning for experts that are active together, against exhaustive search and published tables.
#include <bit>
#include <cmath>
#include <fstream>
#include <functional>

#include "helpers.h"
#include "placement/subset_bound.h"
#include "subset_cases.h"

using namespace moe;
using namespace moe::test;

namespace {

UsageTrace mixtral_pairs() { return shared_usage("mixtral_vllm/pair_counts.csv"); }

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
  double worst = 1, sum = 0, greedy_worst = 1, greedy_sum = 0;
  constexpr int kCases = 1000;
  for (int i = 0; i < kCases; ++i) {
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
    const Placement greedy = greedy_placement(usage, cluster);
    REQUIRE(validate(greedy, cluster, usage).ok());
    REQUIRE(greedy_placement(usage, cluster).layers[0].expert_of_slot ==
            greedy.layers[0].expert_of_slot);
    const double greedy_ratio = mean_time(usage, cluster, greedy) / brute;
    REQUIRE(greedy_ratio >= ratio - 1e-9);  // the search that follows never makes it worse
    greedy_worst = std::max(greedy_worst, greedy_ratio);
    greedy_sum += greedy_ratio;
  }
  std::printf(
      "over the optimum, %d cases: greedy alone mean %.5f, worst %.5f; with search %.5f, "
      "%.5f\n",
      kCases, greedy_sum / kCases, greedy_worst, sum / kCases, worst);
  CHECK(sum / kCases < 1.005);
  CHECK(greedy_sum / kCases < 1.1);
  CHECK(greedy_sum / kCases > 1.0001);  // else these cases could not tell greedy from the optimum
}

TEST_CASE("8 experts, 2 ranks, distributions over all 28 pairs: the optimum equals enumeration",
          "[placement][mission-75]") {
  placement::Random random(seed());
  for (int i = 0; i < 40; ++i) {
    ExpertSets pairs;
    for (int32_t a = 0; a < 8; ++a)
      for (int32_t b = a + 1; b < 8; ++b)
        pairs.add(std::vector<int32_t>{a, b}, std::exp((i % 4) * 2 * random.uniform()));
    const UsageTrace usage = with_sets(std::move(pairs), 8, 2);
    for (int32_t slots = 4; slots <= 6; ++slots) {
      const ExactLayer solved =
          must(solve_subset_exact(usage.layers[0], must(Cluster::uniform(2, slots))));
      REQUIRE(solved.proved);
      REQUIRE(solved.cost ==
              Approx(brute_cost(usage.layers[0].sets, 8, {slots, slots})).epsilon(1e-9));
    }
  }
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

TEST_CASE("greedy's ties go to the lower index, first copies first", "[placement][mission-76]") {
  ExpertSets sets;  // all pairs of four experts, equally often: every choice is a tie
  for (int32_t a = 0; a < 4; ++a)
    for (int32_t b = a + 1; b < 4; ++b) sets.add(std::vector<int32_t>{a, b}, 1);
  const UsageTrace usage = with_sets(std::move(sets), 4, 2);
  const auto slots = [&](int32_t per_rank) {
    return greedy_placement(usage, must(Cluster::uniform(2, per_rank))).layers[0].expert_of_slot;
  };
  CHECK(slots(2) == std::vector<int32_t>{0, 2, 1, 3});
  CHECK(mean_time(usage, must(Cluster::uniform(2, 3)),
                  greedy_placement(usage, must(Cluster::uniform(2, 3)))) == 1);
}

TEST_CASE("16 experts on two ranks, no replicas: the best of all 6,435 bisections",
          "[placement][mission-73]") {
  placement::Random random(seed());
  for (int i = 0; i < 3; ++i) {
    const UsageTrace usage = with_sets(random_sets(random, 16, 2, 60), 16, 2);
    const Cluster cluster = must(Cluster::uniform(2, 8));
    double best = 1e300;
    for (uint32_t left = 1; left < 1u << 16; left += 2) {  // expert 0 is on the left
      if (std::popcount(left) != 8) continue;
      double together = 0;
      const ExpertSets& sets = usage.layers[0].sets;
      for (int64_t s = 0; s < sets.size(); ++s)
        together += sets.counts[s] * (((left >> sets[s][0]) & 1) == ((left >> sets[s][1]) & 1));
      best = std::min(best, 1 + together / sets.total());
    }
    const ExactLayer solved = must(solve_subset_exact(usage.layers[0], cluster));
    REQUIRE(solved.proved);
    CHECK(solved.cost == Approx(best).epsilon(1e-12));
    CHECK(solved.lower_bound == Approx(best).epsilon(1e-12));
    CHECK(mean_time(usage, cluster, must(subset_placement(usage, cluster))) ==
          Approx(best).epsilon(5e-3));
  }
}

TEST_CASE("larger layers without replicas: between the printed bound and greedy plus search",
          "[placement][mission-73]") {
  placement::Random random(seed());
  for (const auto& [experts, ranks, size] :
       {std::tuple{24, 2, 2}, {32, 4, 4}, {48, 2, 2}, {64, 8, 6}}) {
    const UsageTrace usage = with_sets(random_sets(random, experts, size, 16 * experts), experts);
    const Cluster cluster = must(Cluster::uniform(ranks, experts / ranks));
    const ExactLayer solved = must(solve_subset_exact(usage.layers[0], cluster, 20'000));
    const double heuristic = mean_time(usage, cluster, must(subset_placement(usage, cluster)));
    std::printf("%d experts, %d ranks, sets of %d: %.4f, greedy and search %.4f, bound %.4f%s\n",
                experts, ranks, size, solved.cost, heuristic, solved.lower_bound,
                solved.proved ? " (proved)" : "");
    CHECK(solved.cost <= mean_time(usage, cluster, greedy_placement(usage, cluster)) * (1 + 1e-9));
    CHECK(solved.lower_bound <= std::min(solved.cost, heuristic) * (1 + 1e-9));
    CHECK(solved.lower_bound >= 1);
    if (size == 2) CHECK(solved.lower_bound > 1.1);  // tight for pairs: 1.5 if all were equal
  }
}

TEST_CASE("the bound of large layers never exceeds the optimum", "[placement][mission-73]") {
  placement::Random random(seed());
  double closest = 0;
  for (int i = 0; i < 60; ++i) {
    const int32_t ranks = 2 + i % 3, experts = ranks * (i % 3 == 0 ? 4 : 3);
    const auto size = static_cast<int32_t>(2 + random.below(3));
    const UsageTrace usage = with_sets(random_sets(random, experts, size, 30), experts);
    const ExactLayer solved =
        must(solve_subset_exact(usage.layers[0], must(Cluster::uniform(ranks, experts / ranks))));
    REQUIRE(solved.proved);
    const double bound = placement::partition_bound(usage.layers[0].sets, experts, ranks) /
                         usage.layers[0].sets.total();
    INFO(experts << " experts, " << ranks << " ranks, sets of " << size);
    REQUIRE(bound <= solved.cost * (1 + 1e-9));
    REQUIRE(bound >= 1);
    closest = std::max(closest, bound / solved.cost);
  }
  CHECK(closest > 0.95);
}

TEST_CASE("80 % of the subsets are enough, on DBRX's shape", "[placement][mission-77]") {
  const UsageTrace usage = dbrx_like(seed());
  REQUIRE(usage.layers[0].sets.size() == 1820);
  const Cluster cluster = must(Cluster::uniform(4, 6));
  const auto planned_with = [&](double coverage) {
    UsageTrace pruned = usage;
    pruned.layers[0].sets = prune(usage.layers[0].sets, coverage);
    if (coverage == 0.8) {
      CHECK(pruned.layers[0].sets.total() >= 0.8 * usage.layers[0].sets.total());
      CHECK(pruned.layers[0].sets.size() < 600);
    }
    return mean_time(usage, cluster, must(subset_placement(pruned, cluster)));
  };
  const double all = planned_with(1), most = planned_with(0.8), few = planned_with(0.1);
  const double linear = mean_time(usage, cluster, must(place_linear({usage, cluster})));
  std::printf("planned with 10 %%, 80 %%, 100 %% of the counts: %.4f, %.4f, %.4f; linear %.4f\n",
              few, most, all, linear);
  CHECK(most <= all * 1.02);
  CHECK(few > all);
  CHECK(all < linear);
}

TEST_CASE("four ranks, subsets of four: time falls with memory, ours first",
          "[placement][mission-79]") {
  const UsageTrace usage = dbrx_like(seed());
  placement::Random random(seed());
  double last = 1e300;
  for (int32_t slots : {4, 6, 8, 16}) {
    const Cluster cluster = must(Cluster::uniform(4, slots));
    const double ours = mean_time(usage, cluster, must(subset_placement(usage, cluster)));
    CHECK(ours <= last);
    for (const Placement& other :
         {must(place_linear({usage, cluster})), must(place_eplb_global({usage, cluster})),
          greedy_placement(usage, cluster), random_placement(usage, cluster, random)})
      CHECK(ours <= mean_time(usage, cluster, other) * (1 + 1e-9));
    last = ours;
  }
  CHECK(last == 1);  // everything everywhere
}
