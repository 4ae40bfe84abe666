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

namespace {

// What matching must find, by Hall's theorem: the fullest set of ranks is as full as what only it
// can take demands.
int32_t hall_match(const ReplicaTable& table, const std::vector<int32_t>& active) {
  int32_t best = 0;
  for (uint32_t ranks = 1; ranks < 1u << table.ranks; ++ranks) {
    const auto inside = std::count_if(active.begin(), active.end(), [&](int32_t e) {
      return std::all_of(table.rank.begin() + table.first[e],
                         table.rank.begin() + table.first[e + 1],
                         [&](int32_t rank) { return (ranks >> rank) & 1; });
    });
    const int size = std::popcount(ranks);
    best = std::max(best, static_cast<int32_t>((inside + size - 1) / size));
  }
  return best;
}

// The choice is one copy of each expert, and the busiest rank has as many as is said.
void check_match(const ReplicaTable& table, const std::vector<int32_t>& active, int32_t wanted) {
  std::vector<int32_t> copies(active.size(), -1), load(table.ranks, 0);
  const Result<int32_t> busiest = match_replicas(table, active, copies);
  if (!busiest.ok() || *busiest != wanted) FAIL("not the fewest: wanted " << wanted);
  for (size_t i = 0; i < active.size(); ++i) {
    if (copies[i] < table.first[active[i]] || copies[i] >= table.first[active[i] + 1])
      FAIL("copy of another expert");
    ++load[table.rank[copies[i]]];
  }
  if (*std::max_element(load.begin(), load.end()) != wanted) FAIL("another load than returned");
}

// `size` experts for each set of ranks that could hold one: expert e's ranks are the bits of
// e / size + 1.
ReplicaTable table_of_all_sets(int32_t ranks, int32_t size) {
  ReplicaTable table;
  table.ranks = ranks;
  table.first = {0};
  for (int32_t mask = 1; mask < 1 << ranks; ++mask)
    for (int32_t i = 0; i < size; ++i) {
      for (int32_t r = 0; r < ranks; ++r)
        if ((mask >> r) & 1) table.rank.push_back(r);
      table.first.push_back(static_cast<int32_t>(table.rank.size()));
    }
  table.slot.resize(table.rank.size());
  std::iota(table.slot.begin(), table.slot.end(), 0);
  return table;
}

// Every subset of every table of up to `experts` experts on `ranks` ranks: what a match finds
// depends only on how many active experts each set of ranks holds, and every such multiset is here.
// Returns how many there were.
int64_t check_all_tables(int32_t ranks, int32_t experts) {
  const ReplicaTable table = table_of_all_sets(ranks, experts);
  placement::Random random(seed());
  std::vector<int32_t> active, shuffled;
  int64_t checked = 0;
  std::function<void(int32_t)> add_from = [&](int32_t mask) {
    shuffled = active;
    for (size_t i = shuffled.size(); i > 1; --i)
      std::swap(shuffled[i - 1], shuffled[random.below(static_cast<int64_t>(i))]);
    check_match(table, shuffled, hall_match(table, active));
    ++checked;
    if (static_cast<int32_t>(active.size()) == experts) return;
    for (; mask < (1 << ranks) - 1; ++mask) {
      const auto same = std::count_if(active.begin(), active.end(),
                                      [&](int32_t e) { return e / experts == mask; });
      active.push_back(mask * experts + static_cast<int32_t>(same));
      add_from(mask);
      active.pop_back();
    }
  };
  add_from(0);
  return checked;
}

}  // namespace

TEST_CASE("matching equals brute force for all subsets of random tables",
          "[placement][mission-74]") {
  placement::Random random(seed());
  for (int32_t ranks = 1; ranks <= 4; ++ranks)
    for (int32_t experts = 1; experts <= 10; ++experts) {
      const ReplicaTable table = random_table(random, experts, ranks);
      for (uint32_t set = 0; set < 1u << experts; ++set) {
        std::vector<int32_t> active;
        for (int32_t e = 0; e < experts; ++e)
          if ((set >> e) & 1) active.push_back(e);
        const int32_t wanted = brute_match(table, active);
        if (wanted != hall_match(table, active)) FAIL("Hall's theorem and brute force differ");
        check_match(table, active, wanted);
      }
    }
}

TEST_CASE("matching is exact for all subsets of all tables of 12 experts on up to 3 ranks",
          "[placement][mission-74]") {
  CHECK(check_all_tables(1, 12) == 13);
  CHECK(check_all_tables(2, 12) == 455);    // 15 over 3
  CHECK(check_all_tables(3, 12) == 50388);  // 19 over 7
  CHECK(check_all_tables(4, 5) == 15504);   // 20 over 5
}

TEST_CASE("matching is exact for all subsets of all tables of 12 experts on 4 ranks",
          "[placement][mission-74][slow]") {
  CHECK(check_all_tables(4, 12) == 17383860);  // 27 over 12
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
