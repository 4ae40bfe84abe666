// EPLB against the published code's own outputs.
#include "placement/eplb.h"

#include <algorithm>

#include "helpers.h"

using namespace moe;
using namespace moe::test;

namespace {
int64_t integer(const Json& object, const char* key) { return must(object.integer(key)); }

std::vector<double> rank_loads(const std::vector<double>& tokens, const std::vector<int32_t>& slots,
                               int32_t ranks) {
  std::vector<double> load(ranks, 0.0);
  for (size_t s = 0; s < slots.size(); ++s)
    load[s / (slots.size() / ranks)] +=
        tokens[slots[s]] / static_cast<double>(std::count(slots.begin(), slots.end(), slots[s]));
  return load;
}
}  // namespace

TEST_CASE("EPLB equals DeepSeek's published code slot for slot", "[placement][mission-65]") {
  if (!have_shared()) return skip("../shared is absent");
  const Json golden = shared_json("vectors/eplb_golden.json");
  REQUIRE(golden.find("cases")->items().size() == 12);
  for (const Json& c : golden.find("cases")->items()) {
    INFO(must(c.string("name")));
    UsageTrace usage;
    for (const Json& row : c.find("weight")->items())
      usage.layers.push_back({static_cast<int32_t>(usage.layers.size()), numbers<double>(row)});
    const auto ranks = static_cast<int32_t>(integer(c, "num_gpus"));
    const auto slots = static_cast<int32_t>(integer(c, "num_replicas"));
    const Cluster cluster =
        must(Cluster::uniform(ranks, slots / ranks, static_cast<int32_t>(integer(c, "num_nodes"))));
    PlacementProblem problem{usage, cluster};
    problem.workload.groups = static_cast<int32_t>(integer(c, "num_groups"));
    problem.workload.top_k = 1;
    const bool grouped = usage.layers[0].experts() % problem.workload.groups == 0;
    if (!grouped) problem.workload.groups = 1;  // the published code never looks at them either
    const Placement placement = must(grouped ? place_eplb(problem) : place_eplb_global(problem));
    for (size_t l = 0; l < usage.layers.size(); ++l) {
      CHECK(placement.layers[l].expert_of_slot == numbers<int32_t>(c.find("phy2log")->items()[l]));
    }
    CHECK(predicted(problem, placement).balancedness ==
          Approx(*c.find("balancedness_sum_mean_over_sum_max")->number()).epsilon(1e-6));
  }
}

TEST_CASE("EPLB on DeepSeek-R1's loads: equal copies, equal rank loads",
          "[placement][mission-65]") {
  if (!have_shared()) return skip("../shared is absent");
  const Json golden = shared_json("vectors/eplb_golden_deepseek.json");
  REQUIRE(golden.find("cases")->items().size() == 3);
  for (const Json& c : golden.find("cases")->items()) {
    const std::string file(must(c.string("file")));
    INFO(file << " " << must(c.string("tag")));
    const UsageTrace usage = deepseek(file.substr(0, file.find(".json")));
    const auto ranks = static_cast<int32_t>(integer(c, "num_gpus"));
    const auto slots = static_cast<int32_t>(integer(c, "num_replicas"));
    const Cluster cluster =
        must(Cluster::uniform(ranks, slots / ranks, static_cast<int32_t>(integer(c, "num_nodes"))));
    PlacementProblem problem{usage, cluster};
    problem.workload.groups = static_cast<int32_t>(integer(c, "num_groups"));
    const Placement placement = must(place_eplb(problem));
    int differing = 0;
    for (size_t l = 0; l < usage.layers.size(); ++l) {
      CHECK(usage.layers[l].layer == static_cast<int32_t>(l) + 3);
      const auto& tokens = usage.layers[l].tokens;
      const auto& ours = placement.layers[l].expert_of_slot;
      const auto theirs = numbers<int32_t>(c.find("phy2log")->items()[l]);
      differing += ours != theirs;
      for (int32_t e = 0; e < 256; ++e)
        REQUIRE(std::count(ours.begin(), ours.end(), e) ==
                std::count(theirs.begin(), theirs.end(), e));
      auto a = rank_loads(tokens, ours, ranks), b = rank_loads(tokens, theirs, ranks);
      std::sort(a.begin(), a.end());
      std::sort(b.begin(), b.end());
      for (int32_t r = 0; r < ranks; ++r) REQUIRE(a[r] == Approx(b[r]).epsilon(1e-6));
    }
    CHECK(differing <= 8);  // equal-load replicas under their unstable sort
  }
}

namespace {
// (steps, experts): bursts, so that the sum over steps hides what each step needs.
std::vector<float> bursty_steps(uint64_t seed, int32_t steps, int32_t experts) {
  placement::Random random(seed);
  std::vector<float> load;
  for (int32_t i = 0; i < steps * experts; ++i) {
    const auto tokens = static_cast<float>(random.below(1000));
    load.push_back(tokens * (random.below(5) == 0 ? 10.0f : 1.0f));
  }
  return load;
}
}  // namespace

TEST_CASE("EPLB per step equals SGLang's deepseek_vec slot for slot", "[placement][mission-65]") {
  // What sglang's eplb_algorithms/deepseek_vec.py (@68836b6, under PyTorch 1.13) answers.
  struct Golden {
    uint64_t seed;
    int32_t steps, experts, slots, ranks, groups, nodes;
    std::vector<int32_t> expert_of_slot;
  };
  const Golden goldens[] = {
      {1, 5, 12, 16, 4, 1, 1, {7, 3, 3, 2, 7, 11, 0, 8, 10, 11, 1, 9, 4, 6, 5, 5}},
      {2, 9, 16, 20, 5, 1, 1, {2, 9, 4, 0, 13, 14, 4, 8, 3, 14, 11, 5, 7, 6, 1, 5, 10, 12, 1, 15}},
      {3, 4, 8, 10, 10, 1, 1, {0, 1, 2, 3, 4, 5, 6, 7, 7, 3}},
      {4, 7, 16, 24, 8, 4, 2, {15, 13, 7,  15, 13, 4,  15, 14, 6, 5, 5, 12,
                               1,  8,  10, 0,  3,  10, 11, 3,  2, 9, 9, 2}},
      {5, 6, 32, 40, 8, 8, 4, {10, 8,  24, 27, 26, 25, 8,  9,  9,  11, 5,  2,  7,  1,
                               0,  5,  3,  7,  4,  6,  20, 22, 23, 13, 13, 20, 14, 21,
                               15, 12, 17, 19, 19, 31, 16, 29, 29, 30, 18, 28}},
      {7, 3, 16, 24, 6, 1, 2, {0,  13, 8, 6,  15, 13, 5,  4,  15, 13, 5, 2,
                               15, 13, 1, 11, 10, 3,  12, 14, 10, 3,  9, 7}},
  };
  int differing = 0;
  for (const Golden& golden : goldens) {
    INFO("seed " << golden.seed);
    LayerUsage layer{0, std::vector<double>(golden.experts, 0.0)};
    layer.steps = bursty_steps(golden.seed, golden.steps, golden.experts);
    for (size_t i = 0; i < layer.steps.size(); ++i)
      layer.tokens[i % golden.experts] += layer.steps[i];
    const UsageTrace usage{1, {layer}};
    const Cluster cluster =
        must(Cluster::uniform(golden.ranks, golden.slots / golden.ranks, golden.nodes));
    PlacementProblem problem{usage, cluster};
    problem.workload.groups = golden.groups;
    CHECK(must(place_eplb_steps(problem)).layers[0].expert_of_slot == golden.expert_of_slot);
    auto summed = must(place_eplb(problem)).layers[0].expert_of_slot,
         by_step = golden.expert_of_slot;
    std::sort(summed.begin(), summed.end());
    std::sort(by_step.begin(), by_step.end());
    differing += summed != by_step;
  }
  CHECK(differing >= 3);  // other copies than the sum over steps asks for
}

TEST_CASE("balancedness before and after EPLB on nine loads, to four digits",
          "[placement][mission-68]") {
  if (!have_shared()) return skip("../shared is absent");
  struct Topology {
    const char* tag;
    int32_t ranks, slots, nodes, groups;
  };
  const Topology topologies[] = {
      {"EP8_r0", 8, 256, 1, 8},         {"EP32_r0", 32, 256, 4, 8},
      {"EP32_hier_r32", 32, 288, 4, 8}, {"EP32_glob_r32", 32, 288, 4, 1},
      {"EP72_glob_r32", 72, 288, 9, 1}, {"EP64_glob_r64", 64, 320, 8, 1}};
  const Json table = shared_json("traces/deepseek_r1_sglang/derived_balancedness.json");
  REQUIRE(table.items().size() == 9);
  for (const Json& row : table.items()) {
    const std::string file(must(row.string("file")));
    const UsageTrace usage = deepseek(file.substr(0, file.find(".json")));
    for (const Topology& t : topologies) {
      INFO(file << " " << t.tag);
      const auto published = numbers<double>(*row.find(t.tag));
      const Cluster cluster = must(Cluster::uniform(t.ranks, t.slots / t.ranks, t.nodes));
      PlacementProblem problem{usage, cluster};
      problem.workload.groups = t.groups;
      CHECK(balancedness(problem, must(place_linear(problem))) ==
            Approx(published[0]).margin(1.01e-4));
      CHECK(balancedness(problem, must(place_eplb(problem))) ==
            Approx(published[1]).margin(1.01e-4));
    }
  }
}

TEST_CASE("replication is greedy and packing stable, to the lower index", "[placement]") {
  const std::vector<float> weight = {5, 5, 5, 5};
  const auto replicas = placement::replicate(weight, 6);
  CHECK(replicas.expert == std::vector<int32_t>{0, 1, 2, 3, 0, 1});
  const auto packing = placement::balanced_packing(weight, 2);
  CHECK(packing.pack == std::vector<int32_t>{0, 1, 0, 1});
  // One item a pack: as published, not sorted.
  CHECK(placement::balanced_packing(std::vector<float>{1, 9}, 2).pack ==
        std::vector<int32_t>{0, 1});
}
