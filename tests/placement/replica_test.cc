// Which copy serves a token: matching against brute force, the split against the exact optimum.
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>

#include "helpers.h"
#include "moe/replica_choice.h"
#include "placement/replica_hash.h"

using namespace moe;
using namespace moe::test;

namespace {

ReplicaTable random_table(placement::Random& random, int32_t experts, int32_t ranks) {
  Cluster cluster;
  cluster.slots.assign(ranks, experts);
  LayerPlacement layer{0, std::vector<int32_t>(experts * ranks, -1)};
  for (int32_t e = 0; e < experts; ++e) {
    const auto home = static_cast<int32_t>(random.below(ranks));
    for (int32_t r = 0; r < ranks; ++r)
      if (r == home || random.uniform() < 0.3) layer.expert_of_slot[r * experts + e] = e;
  }
  return must(replica_table(layer, cluster, experts));
}

int32_t brute_match(const ReplicaTable& table, const std::vector<int32_t>& active) {
  std::vector<int32_t> load(table.ranks, 0);
  auto best = static_cast<int32_t>(active.size());
  std::function<void(size_t, int32_t)> place = [&](size_t i, int32_t busiest) {
    if (busiest >= best) return;
    if (i == active.size()) return void(best = busiest);
    for (int32_t c = table.first[active[i]]; c < table.first[active[i] + 1]; ++c) {
      const int32_t now = ++load[table.rank[c]];
      place(i + 1, std::max(busiest, now));
      --load[table.rank[c]];
    }
  };
  if (!active.empty()) place(0, 0);
  return active.empty() ? 0 : best;
}

// Smallest M: the largest average over sets of ranks of what only these can take.
double brute_split(const ReplicaTable& table, const std::vector<double>& counts) {
  double best = 0;
  for (uint32_t ranks = 1; ranks < 1u << table.ranks; ++ranks) {
    double load = 0;
    for (int32_t e = 0; e < table.experts(); ++e) {
      bool inside = true;
      for (int32_t c = table.first[e]; c < table.first[e + 1]; ++c)
        inside = inside && ((ranks >> table.rank[c]) & 1);
      if (inside) load += counts[e];
    }
    best = std::max(best, load / std::popcount(ranks));
  }
  return best;
}

}  // namespace

TEST_CASE("matching equals brute force for all subsets of up to 12 experts on up to 4 ranks",
          "[placement][mission-74]") {
  placement::Random random(seed());
  for (int32_t ranks = 1; ranks <= 4; ++ranks)
    for (int32_t experts : {5, 9, 12}) {
      const ReplicaTable table = random_table(random, experts, ranks);
      for (uint32_t set = 0; set < 1u << experts; ++set) {
        std::vector<int32_t> active, copies;
        for (int32_t e = 0; e < experts; ++e)
          if ((set >> e) & 1) active.push_back(e);
        copies.assign(active.size(), -1);
        const int32_t busiest = must(match_replicas(table, active, copies));
        std::vector<int32_t> load(ranks, 0);
        for (size_t i = 0; i < active.size(); ++i) {
          if (copies[i] < table.first[active[i]] || copies[i] >= table.first[active[i] + 1])
            FAIL("copy of another expert");
          ++load[table.rank[copies[i]]];
        }
        if (busiest != brute_match(table, active) ||
            busiest != *std::max_element(load.begin(), load.end()))
          FAIL("set " << set << " of " << experts << " experts on " << ranks << " ranks");
      }
    }
}

TEST_CASE("the LP split is exact", "[placement]") {
  placement::Random random(seed());
  for (int i = 0; i < 300; ++i) {
    const auto ranks = static_cast<int32_t>(1 + random.below(6));
    const auto experts = static_cast<int32_t>(1 + random.below(24));
    const ReplicaTable table = random_table(random, experts, ranks);
    std::vector<double> counts(experts);
    for (double& c : counts) c = static_cast<double>(random.below(1000));
    const LoadSplit split = must(split_load(table, counts));
    REQUIRE(split.max_load == Approx(brute_split(table, counts)).epsilon(1e-9).margin(1e-9));
    std::vector<double> load(ranks, 0.0);
    for (int32_t e = 0; e < experts; ++e) {
      double sum = 0;
      for (int32_t c = table.first[e]; c < table.first[e + 1]; ++c) {
        REQUIRE(split.tokens[c] >= 0);
        sum += split.tokens[c];
        load[table.rank[c]] += split.tokens[c];
      }
      REQUIRE(sum == Approx(counts[e]).epsilon(1e-9).margin(1e-6));
    }
    REQUIRE(*std::max_element(load.begin(), load.end()) == Approx(split.max_load).margin(1e-6));
  }
}

TEST_CASE("LPLB's vectors: the exact optimum within 1e-6", "[placement]") {
  if (!have_shared()) return skip("../shared is absent");
  const Json golden = shared_json("vectors/lplb_golden.json");
  REQUIRE(golden.find("cases")->items().size() == 2);
  for (const Json& c : golden.find("cases")->items()) {
    const auto slots = numbers<int32_t>(*c.find("phy2log"));
    const auto ranks = static_cast<int32_t>(must(c.integer("num_gpus")));
    const Cluster cluster =
        must(Cluster::uniform(ranks, static_cast<int32_t>(slots.size()) / ranks));
    const auto counts = numbers<double>(*c.find("counts"));
    const ReplicaTable table =
        must(replica_table({0, slots}, cluster, static_cast<int32_t>(counts.size())));
    CHECK(must(split_load(table, counts)).max_load ==
          Approx(*c.find("exact_M")->number()).margin(1e-6));
  }
}

TEST_CASE("every choice serves every pair by a copy of its expert", "[placement][mission-62]") {
  placement::Random random(seed());
  const ReplicaTable table = random_table(random, 20, 4);
  std::vector<int32_t> ids;
  for (int t = 0; t < 50; ++t) {
    const auto e = static_cast<int32_t>(random.below(10));
    ids.insert(ids.end(), {e, e + 10, t % 7 == 0 ? -1 : (e + 5) % 10});
  }
  for (ReplicaChoice choice :
       {ReplicaChoice::fixed, ReplicaChoice::nearest, ReplicaChoice::round_robin,
        ReplicaChoice::position_hash, ReplicaChoice::least_loaded, ReplicaChoice::matching,
        ReplicaChoice::lp_split}) {
    INFO(to_string(choice));
    std::vector<int32_t> slots(ids.size(), -7), again(ids.size(), -9);
    const ReplicaBatch batch{ids, 3, 1, 1000};
    REQUIRE(choose_replicas(choice, table, batch, slots).ok());
    REQUIRE(choose_replicas(choice, table, batch, again).ok());
    CHECK(slots == again);
    for (size_t p = 0; p < ids.size(); ++p) {
      if (ids[p] < 0) {
        CHECK(slots[p] == -1);
        continue;
      }
      const auto begin = table.slot.begin() + table.first[ids[p]];
      const auto end = table.slot.begin() + table.first[ids[p] + 1];
      CHECK(std::find(begin, end, slots[p]) != end);
      if (choice == ReplicaChoice::position_hash)
        CHECK(slots[p] == begin[((1000 + p / 3) * 2654435769u % (uint64_t{1} << 32)) %
                                static_cast<size_t>(end - begin)]);
    }
  }
  std::vector<int32_t> few(2);
  CHECK(choose_replicas(ReplicaChoice::nearest, table, {ids, 3}, few).code() ==
        StatusCode::invalid_argument);
  CHECK(choose_replicas(ReplicaChoice::nearest, table, {ids, 3, 9}, ids).code() ==
        StatusCode::invalid_argument);
}

TEST_CASE("the batch's matching is never above its LP on totals, rounded up",
          "[placement][mission-74]") {
  placement::Random random(seed());
  for (int i = 0; i < 50; ++i) {
    const ReplicaTable table = random_table(random, 32, 8);
    std::vector<int32_t> active(32), copies(32);
    std::iota(active.begin(), active.end(), 0);
    const double lp = must(split_load(table, std::vector<double>(32, 1.0))).max_load;
    CHECK(must(match_replicas(table, active, copies)) ==
          static_cast<int32_t>(std::ceil(lp - 1e-9)));
  }
}
