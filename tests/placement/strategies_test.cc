// What every strategy promises, and what ours promises beyond the published ones.
#include <bit>
#include <cmath>
#include <numeric>

#include "helpers.h"
#include "moe/balance.h"
#include "moe/rebalance.h"

using namespace moe;
using namespace moe::test;

namespace {

Placement placed(const char* name, const PlacementProblem& problem) {
  INFO(name);
  return must(must(find_strategy(name))(problem));
}

// Mean distinct remote nodes per token: each token draws 4 of 8 groups of experts by group load
// without replacement, then 8 of their experts by load; sources are uniform over ranks; a copy on
// the source's node is preferred, then one on a node already visited, then the first.
double cross_node_rows(const UsageTrace& usage, const Cluster& cluster,
                       const Placement& placement) {
  placement::Random random(7);
  const std::vector<int32_t> rank = cluster.rank_of_slot();
  double rows = 0, tokens = 0;
  for (size_t l = 0; l < usage.layers.size(); l += 5) {
    const auto& load = usage.layers[l].tokens;
    std::vector<std::vector<int32_t>> nodes(256);
    for (size_t s = 0; s < rank.size(); ++s)
      if (const int32_t e = placement.layers[l].expert_of_slot[s]; e >= 0)
        nodes[e].push_back(cluster.node(rank[s]));
    const auto draw = [&](std::vector<double>& weight) {
      double at = random.uniform() * std::accumulate(weight.begin(), weight.end(), 0.0);
      size_t i = 0;
      while (i + 1 < weight.size() && (at -= weight[i]) >= 0) ++i;
      while (weight[i] == 0) i = (i + 1) % weight.size();
      weight[i] = 0;
      return static_cast<int32_t>(i);
    };
    for (int t = 0; t < 400; ++t) {
      std::vector<double> groups(8, 0.0), members(256, 0.0);
      for (int e = 0; e < 256; ++e) groups[e / 32] += load[e];
      for (int g = 0; g < 4; ++g) {
        const int32_t group = draw(groups);
        std::copy_n(load.begin() + group * 32, 32, members.begin() + group * 32);
      }
      const int32_t home = cluster.node(static_cast<int32_t>(random.below(cluster.ranks())));
      uint32_t visited = 1u << home;
      for (int k = 0; k < 8; ++k) {
        const auto& copies = nodes[draw(members)];
        const bool there = std::any_of(copies.begin(), copies.end(),
                                       [&](int32_t n) { return (visited >> n) & 1; });
        if (!there) visited |= 1u << copies.front();
      }
      rows += std::popcount(visited) - 1;
      tokens += 1;
    }
  }
  return rows / tokens;
}

}  // namespace

TEST_CASE("linear: a partition whose sizes differ by at most one", "[placement][mission-59]") {
  for (int32_t experts = 1; experts <= 64; ++experts)
    for (int32_t ranks = 1; ranks <= 64; ++ranks) {
      const Cluster cluster = must(Cluster::exact(ranks, experts));
      const UsageTrace usage = one_layer(std::vector<double>(experts, 1.0));
      const PlacementProblem problem{usage, cluster};
      const auto slots = must(place_linear(problem)).layers[0].expert_of_slot;
      std::vector<int32_t> all(experts);
      std::iota(all.begin(), all.end(), 0);
      REQUIRE(slots == all);
      const auto [least, most] = std::minmax_element(cluster.slots.begin(), cluster.slots.end());
      REQUIRE(*most - *least <= 1);
    }
  CHECK(must(Cluster::exact(4, 8)).slots == std::vector<int32_t>{2, 2, 2, 2});
}

TEST_CASE("round robin: expert e on rank e mod ranks, or a typed reason",
          "[placement][mission-60]") {
  for (int32_t experts = 1; experts <= 64; ++experts)
    for (int32_t ranks = 1; ranks <= 64; ++ranks) {
      const Cluster cluster = must(Cluster::exact(ranks, experts));
      const UsageTrace usage = one_layer(std::vector<double>(experts, 1.0));
      const Placement placement = must(place_round_robin({usage, cluster}));
      const auto rank = cluster.rank_of_slot();
      for (size_t s = 0; s < rank.size(); ++s)
        REQUIRE(placement.layers[0].expert_of_slot[s] % ranks == rank[s]);
    }
  Cluster uneven;
  uneven.slots = {1, 3};
  const UsageTrace usage = one_layer({1, 1, 1, 1});
  CHECK(place_round_robin({usage, uneven}).status().code() == StatusCode::failed_precondition);
}

TEST_CASE("vLLM's expert maps", "[placement][mission-59][mission-60]") {
  using Map = std::vector<int32_t>;
  const auto map = [](Strategy strategy, int32_t ranks, int32_t experts, int32_t rank) {
    const Cluster cluster = must(Cluster::exact(ranks, experts));
    const UsageTrace usage = one_layer(std::vector<double>(experts, 1.0));
    return must(expert_map(must(strategy({usage, cluster})).layers[0], cluster, experts, rank));
  };
  // All of vLLM's tests/distributed/test_expert_placement.py (@030ea52): the maps it spells out,
  CHECK(map(place_round_robin, 2, 8, 0) == Map{0, -1, 1, -1, 2, -1, 3, -1});
  CHECK(map(place_round_robin, 2, 8, 1) == Map{-1, 0, -1, 1, -1, 2, -1, 3});
  CHECK(map(place_round_robin, 2, 9, 0) == Map{0, -1, 1, -1, 2, -1, 3, -1, 4});
  CHECK(map(place_round_robin, 2, 9, 1) == Map{-1, 0, -1, 1, -1, 2, -1, 3, -1});
  CHECK(map(place_round_robin, 4, 8, 0) == Map{0, -1, -1, -1, 1, -1, -1, -1});
  CHECK(map(place_round_robin, 4, 8, 1) == Map{-1, 0, -1, -1, -1, 1, -1, -1});
  CHECK(map(place_round_robin, 4, 8, 2) == Map{-1, -1, 0, -1, -1, -1, 1, -1});
  CHECK(map(place_round_robin, 4, 8, 3) == Map{-1, -1, -1, 0, -1, -1, -1, 1});
  // its patterns (even and uneven), and the same for linear.
  for (const auto& [ranks, experts] : {std::pair{2, 4},
                                       {2, 8},
                                       {2, 9},
                                       {2, 16},
                                       {2, 17},
                                       {4, 8},
                                       {4, 16},
                                       {4, 18},
                                       {4, 32},
                                       {4, 33},
                                       {3, 8},
                                       {1, 8}})
    for (int32_t rank = 0, next = 0; rank < ranks; ++rank) {
      INFO(experts << " experts, rank " << rank << " of " << ranks);
      Map turns(experts, -1), blocks(experts, -1);
      for (int32_t e = rank; e < experts; e += ranks) turns[e] = e / ranks;
      const int32_t held = experts / ranks + (rank < experts % ranks ? 1 : 0);
      for (int32_t local = 0; local < held; ++local) blocks[next++] = local;
      CHECK(map(place_round_robin, ranks, experts, rank) == turns);
      CHECK(map(place_linear, ranks, experts, rank) == blocks);
    }
  CHECK_FALSE(Cluster::exact(0, 8).ok());
  const Cluster two = must(Cluster::exact(2, 4));
  CHECK(expert_map({0, {0, 1, 2, 3}}, two, 4, 2).status().code() == StatusCode::invalid_argument);
}

namespace {
// Every strategy on every objective: complete, within its slots, the same again, and never better
// than auto.
void check_properties(int clusters) {
  placement::Random random(seed());
  int compared = 0;
  for (int i = 0; i < clusters; ++i) {
    const auto experts = static_cast<int32_t>(1 + random.below(24));
    Cluster cluster;
    while (cluster.total_slots() < experts) {
      cluster.slots.clear();
      const auto ranks = 1 + random.below(9);
      const auto equal = static_cast<int32_t>(random.below(14));  // EPLB wants equal ranks
      for (int64_t r = 0; r < ranks; ++r)
        cluster.slots.push_back(i % 2 ? equal : static_cast<int32_t>(random.below(14)));
    }
    if (random.uniform() < 0.5)
      for (int32_t r = 0; r < cluster.ranks(); ++r)
        cluster.node_of_rank.push_back(r * 2 / cluster.ranks());
    UsageTrace usage = one_layer(random_tokens(random, experts));
    if (random.uniform() < 0.5)
      for (int step = 0; step < 4; ++step)
        for (double tokens : random_tokens(random, experts))
          usage.layers[0].steps.push_back(static_cast<float>(tokens));
    for (Objective objective : {Objective::tokens, Objective::active, Objective::traffic}) {
      PlacementProblem problem{usage, cluster};
      problem.objective = objective;
      problem.workload.tokens_per_step = 1 + random.below(4);
      const Placement ours = placed("auto", problem);
      REQUIRE(validate(ours, cluster, usage).ok());  // no twins
      const double mine = predicted(problem, ours).value;
      for (const StrategyRow& row : strategies()) {
        if (row.place == place_subset_exact) continue;  // has its own test
        const Result<Placement> placement = row.place(problem);
        INFO(row.name << ", " << experts << " experts, " << cluster.ranks() << " ranks, "
                      << to_string(objective));
        if (!placement.ok()) {
          REQUIRE(placement.status().code() == StatusCode::failed_precondition);
          continue;
        }
        const bool twins = std::string(row.name).starts_with("eplb");
        REQUIRE(validate(*placement, cluster, usage, twins).ok());
        const Placement again = row.place == place_auto ? ours : must(row.place(problem));
        REQUIRE(again.layers[0].expert_of_slot == placement->layers[0].expert_of_slot);
        REQUIRE(mine <= predicted(problem, *placement).value * (1 + 1e-9));
        ++compared;
      }
    }
  }
  CHECK(compared > 12 * clusters);
}
}  // namespace

TEST_CASE("properties on random clusters", "[placement][mission-67]") { check_properties(2); }
TEST_CASE("properties on many random clusters", "[placement][mission-67][slow]") {
  check_properties(8);
}

TEST_CASE("auto has no twins and still beats published EPLB, which has", "[placement]") {
  placement::Random random(seed());
  int with_twins = 0;
  for (int i = 0; i < 40; ++i) {
    const auto ranks = static_cast<int32_t>(2 + random.below(3));
    const auto experts = static_cast<int32_t>(2 + random.below(5));
    const auto slots = static_cast<int32_t>((experts + ranks - 1) / ranks + 1 + random.below(4));
    const Cluster cluster = must(Cluster::uniform(ranks, slots, i % 2 && ranks % 2 == 0 ? 2 : 1));
    UsageTrace usage = one_layer(random_tokens(random, experts));
    usage.layers[0].tokens[0] += 20000;  // one takes nearly all: EPLB gives it most slots
    PlacementProblem problem{usage, cluster};
    problem.objective = i % 4 < 2 ? Objective::tokens : Objective::traffic;
    for (Strategy eplb : {place_eplb, place_eplb_global}) {
      const Placement published = must(eplb(problem));
      with_twins += !validate(published, cluster, usage).ok();
      for (const Placement* previous : {static_cast<const Placement*>(nullptr), &published}) {
        problem.previous = previous;
        const Placement ours = placed("auto", problem);
        REQUIRE(validate(ours, cluster, usage).ok());
        INFO(experts << " experts, " << ranks << " ranks x " << slots << " slots");
        REQUIRE(predicted(problem, ours).value <= predicted(problem, published).value * (1 + 1e-9));
      }
      problem.previous = nullptr;
    }
  }
  CHECK(with_twins > 20);
}

TEST_CASE("auto near a placement in place: as good as any strategy, few moves",
          "[placement][mission-65]") {
  placement::Random random(seed());
  for (int i = 0; i < 6; ++i) {
    const Cluster cluster = must(Cluster::uniform(4, 5));
    const UsageTrace before = one_layer(random_tokens(random, 16));
    UsageTrace now = before;
    for (double& tokens : now.layers[0].tokens) tokens *= 0.8 + 0.4 * random.uniform();
    PlacementProblem problem{now, cluster};
    problem.objective = Objective::tokens;
    const Placement fresh = placed("auto", problem);
    const Placement previous = placed("auto", {before, cluster, {}, Objective::tokens});
    problem.previous = &previous;
    const Placement near = placed("auto", problem);
    const double value = predicted(problem, near).value;
    double best = value;
    for (const StrategyRow& row : strategies()) {
      INFO(row.name);
      const double other = predicted(problem, must(row.place(problem))).value;
      REQUIRE(value <= other * (1 + 1e-9));
      best = std::min(best, other);
    }
    const auto moved = [&](const Placement& next) {
      return moved_copies(
          must(plan_transfers(previous, must(preserve_slots(previous, next, cluster)), cluster)));
    };
    // Without `previous` it may miss what a strategy finds near it.
    if (predicted(problem, fresh).value <= best * (1 + 1e-9)) CHECK(moved(near) <= moved(fresh));
  }
}

TEST_CASE("auto on DeepSeek-R1's loads: never less balanced than EPLB global",
          "[placement][mission-65]") {
  if (!have_shared()) return skip("../shared is absent");
  for (const std::string& file : deepseek_files()) {
    const UsageTrace usage = deepseek(file);
    for (const auto& [ranks, slots] : {std::pair{8, 32}, {32, 9}, {64, 5}, {72, 4}}) {
      const Cluster cluster = must(Cluster::uniform(ranks, slots));
      const PlacementProblem problem{usage, cluster};
      const double ours = balancedness(problem, placed("auto", problem));
      const double theirs = balancedness(problem, placed("eplb-global", problem));
      INFO(file << ", " << ranks << " ranks: " << ours << " and " << theirs);
      CHECK(ours >= theirs);
    }
  }
}

TEST_CASE("drifting loads: EPLB's balance for fewer moves", "[placement][mission-65]") {
  if (!have_shared()) return skip("../shared is absent");
  const Cluster cluster = must(Cluster::uniform(32, 9));
  int64_t ours_moved = 0, theirs_moved = 0;
  Placement mine, theirs;
  for (const std::string& file : deepseek_files()) {
    const UsageTrace usage = deepseek(file);
    PlacementProblem problem{usage, cluster};
    const Placement next = placed("eplb-global", problem);
    if (mine.layers.empty()) {
      mine = theirs = next;
      continue;
    }
    problem.previous = &mine;
    const Placement near = must(preserve_slots(mine, placed("balanced", problem), cluster));
    const Placement kept = must(preserve_slots(theirs, next, cluster));
    const int64_t a = moved_copies(must(plan_transfers(mine, near, cluster)));
    const int64_t b = moved_copies(must(plan_transfers(theirs, kept, cluster)));
    INFO(file << ": moved " << a << " and " << b);
    CHECK(balancedness(problem, near) >= balancedness(problem, next) * (1 - 1e-6));
    CHECK(a < b);
    ours_moved += a;
    theirs_moved += b;
    mine = near;
    theirs = kept;
  }
  std::printf("copies moved over eight drifts, 58 layers, 32 ranks x 9: ours %lld, EPLB %lld\n",
              static_cast<long long>(ours_moved), static_cast<long long>(theirs_moved));
}

TEST_CASE("four nodes: less cross-node traffic than EPLB global at 0.95 of its balance",
          "[placement][mission-55]") {
  if (!have_shared()) return skip("../shared is absent");
  const Cluster cluster = must(Cluster::uniform(32, 9, 4));
  for (const std::string& file : deepseek_files()) {
    const UsageTrace usage = deepseek(file);
    PlacementProblem problem{usage, cluster};
    problem.workload.groups = 8;
    const Placement ours = placed("auto", problem), theirs = placed("eplb-global", problem);
    const double a = cross_node_rows(usage, cluster, ours);
    const double b = cross_node_rows(usage, cluster, theirs);
    std::printf("%s: rows to other nodes %.3f, EPLB global %.3f; balancedness %.4f, %.4f\n",
                file.c_str(), a, b, balancedness(problem, ours), balancedness(problem, theirs));
    CHECK(a < b);
    const auto between_nodes = static_cast<int>(LinkClass::rack);
    CHECK(predicted(problem, ours).cross_bytes[between_nodes] <
          predicted(problem, theirs).cross_bytes[between_nodes]);
    CHECK(balancedness(problem, ours) >= 0.95 * balancedness(problem, theirs));
  }
}

TEST_CASE("the objective flips: decode spreads the pair that link-bound prefill groups",
          "[placement][mission-55]") {
  ExpertSets pairs;
  pairs.add(std::vector<int32_t>{0, 1}, 100);
  pairs.add(std::vector<int32_t>{2, 3}, 100);
  UsageTrace usage = one_layer({100, 100, 100, 100}, pairs);
  usage.top_k = 2;
  Cluster cluster = must(Cluster::uniform(2, 2, 2));
  const auto rank_of = [](const Placement& placement, int32_t expert) {
    const auto& slots = placement.layers[0].expert_of_slot;
    return (std::find(slots.begin(), slots.end(), expert) - slots.begin()) / 2;
  };
  PlacementProblem decode{usage, cluster};
  decode.workload.tokens_per_step = 1;
  CHECK(must(limiting_objective(decode)) == Objective::active);
  const Placement spread = placed("auto", decode);
  CHECK(rank_of(spread, 0) != rank_of(spread, 1));
  CHECK(rank_of(spread, 2) != rank_of(spread, 3));

  PlacementProblem prefill{usage, cluster};
  prefill.workload.tokens_per_step = 65536;
  CHECK(must(limiting_objective(prefill)) == Objective::traffic);
  const Placement grouped = placed("auto", prefill);
  CHECK(rank_of(grouped, 0) == rank_of(grouped, 1));
  CHECK(rank_of(grouped, 2) == rank_of(grouped, 3));
}

TEST_CASE("steps of unknown size are limited by compute, on one rank as on many", "[placement]") {
  placement::Random random(seed());
  for (int32_t experts : {8, 256, 4096})
    for (int32_t ranks : {1, 2, 8}) {
      const UsageTrace usage = one_layer(random_tokens(random, experts));
      const Cluster cluster = must(Cluster::exact(ranks, experts));
      for (double bits : {4.0, 8.0, 16.0, 32.0}) {
        PlacementProblem problem{usage, cluster};
        problem.workload.expert_bytes *= bits / 8;
        CHECK(must(limiting_objective(problem)) == Objective::tokens);
      }
    }
}

TEST_CASE("expected distinct experts: the formula, and gpt-oss's measured numbers",
          "[placement][mission-72]") {
  const auto distinct = [](const UsageTrace& usage, int64_t tokens) {
    const Cluster cluster = must(Cluster::uniform(1, usage.layers[0].experts()));
    PlacementProblem problem{usage, cluster};
    problem.workload.tokens_per_step = tokens;
    const Prediction p = predicted(problem, must(place_linear(problem)));
    double sum = 0;
    for (const LayerPrediction& layer : p.layers) sum += layer.active;
    return sum / static_cast<double>(p.layers.size());
  };
  UsageTrace even = one_layer(std::vector<double>(64, 1.0));
  even.top_k = 4;
  for (int64_t tokens : {1, 2, 8, 32})
    CHECK(distinct(even, tokens) ==
          Approx(64 * (1 - std::pow(1 - 4.0 / 64, tokens))).epsilon(0.03));
  if (!have_shared()) return skip("../shared is absent");
  const UsageTrace gptoss = shared_usage("gptoss20b/gptoss20b_top4_traces.csv.gz");
  const std::pair<int64_t, double> measured[] = {{1, 4.0},   {2, 7.2},   {4, 11.8}, {8, 17.5},
                                                 {16, 22.6}, {32, 26.5}, {64, 28.9}};
  for (const auto& [tokens, experts] : measured) {
    INFO(tokens << " tokens");
    CHECK(distinct(gptoss, tokens) == Approx(experts).epsilon(0.01));
  }
}

TEST_CASE("a cost matrix moves traffic off the costly way", "[placement][mission-55]") {
  placement::Random random(seed());
  const Cluster flat = must(Cluster::uniform(4, 4));
  Cluster costly = flat;
  costly.seconds_per_byte.assign(16, 1e-11);
  for (int r = 0; r < 4; ++r)
    for (int q = 0; q < 4; ++q)
      if (r == q)
        costly.seconds_per_byte[r * 4 + q] = 0;
      else if (r / 2 != q / 2)
        costly.seconds_per_byte[r * 4 + q] = 1e-9;
  ExpertSets sets;
  for (int i = 0; i < 16; i += 4)
    sets.add(std::vector<int32_t>{i / 4, i / 4 + 4, i / 4 + 8, i / 4 + 12}, 10);
  UsageTrace usage = one_layer(std::vector<double>(16, 10.0), sets);
  usage.top_k = 4;
  PlacementProblem problem{usage, costly};
  problem.objective = Objective::traffic;
  CHECK(predicted(problem, placed("auto", problem)).value <
        predicted(problem, placed("linear", problem)).value);
  CHECK(predicted(problem, placed("auto", problem)).value <=
        predicted(problem, placed("balanced", problem)).value);
}

TEST_CASE("bad problems are refused with the numbers", "[placement]") {
  const UsageTrace usage = one_layer({1, 2, 3, 4});
  const Cluster small = must(Cluster::uniform(1, 3));
  CHECK(place_linear({usage, small}).status().code() == StatusCode::failed_precondition);
  const Cluster cluster = must(Cluster::uniform(2, 2));
  PlacementProblem problem{usage, cluster};
  problem.workload.groups = 3;
  CHECK(place_auto(problem).status().code() == StatusCode::invalid_argument);
  problem.workload = {};
  problem.workload.top_k = 5;
  CHECK(place_auto(problem).status().code() == StatusCode::invalid_argument);
  UsageTrace bad = usage;
  bad.layers[0].tokens[2] = -1;
  CHECK(place_auto({bad, cluster}).status().place().expert == 2);
  Cluster broken = cluster;
  broken.rack_link.bytes_per_second = 0;
  CHECK(place_auto({usage, broken}).status().code() == StatusCode::invalid_argument);
  CHECK(find_strategy("best").status().code() == StatusCode::not_found);
  CHECK_FALSE(evaluate({usage, cluster}, {{{0, {0, 1, 2, 2}}}}).ok());
}

TEST_CASE("idle experts and idle groups are planned, too", "[placement]") {
  const Cluster cluster = must(Cluster::uniform(2, 5, 2));
  for (const std::vector<double>& tokens : {std::vector<double>{5, 3, 1, 2, 0, 0, 0, 0},
                                            {0, 0, 0, 0, 0, 0, 0, 7},
                                            {0, 1, 0, 0, 1, 0, 0, 0}}) {
    const UsageTrace usage = one_layer(tokens);
    for (int32_t groups : {1, 2, 4})
      for (int64_t step : {0, 1, 7}) {
        PlacementProblem problem{usage, cluster};
        problem.workload.groups = groups;
        problem.workload.top_k = 6;  // more than a group, or all that is busy, has
        problem.workload.tokens_per_step = step;
        const Placement placement = placed("auto", problem);
        REQUIRE(validate(placement, cluster, usage).ok());
        CHECK(predicted(problem, placement).us > 0);
      }
  }
}

TEST_CASE("load statistics and both balancednesses by hand",
          "[placement][mission-68][mission-70]") {
  const LoadStatistics s = load_statistics(std::vector<double>{10, 30, 20, 40}, 0);
  CHECK(s.cv == Approx(std::sqrt(125.0) / 25));
  CHECK(s.max_over_mean == Approx(1.6));
  CHECK(s.max_over_min == Approx(4));
  CHECK(s.balance == Balance::moderate);  // max/min > 3
  CHECK(load_statistics(std::vector<double>{20, 30}, 16).balance == Balance::well);
  CHECK(load_statistics(std::vector<double>{1, 9}, 16).balance == Balance::too_few);
  CHECK(load_statistics(std::vector<double>{0, 0, 0, 100}, 16).balance == Balance::severe);
  CHECK(std::string(to_string(Balance::severe)) == "severe imbalance");
  const std::vector<double> load = {1, 3, 4, 4};
  CHECK(balancedness_vllm(load, 2) == Approx((2.0 + 4.0) / (3.0 + 4.0)));
  CHECK(balancedness_sglang(load, 2) == Approx((2.00001 / 3.00001 + 1.0) / 2));
  CHECK(wait_share(1, 20) == Approx(0.05));
}
