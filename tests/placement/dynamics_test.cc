// Usage files; when to move, what and how.
#include <filesystem>
#include <fstream>
#include <map>

#include "helpers.h"
#include "moe/rebalance.h"

using namespace moe;
using namespace moe::test;

TEST_CASE("usage files: each format, there and back", "[placement]") {
  const UsageTrace sglang = must(parse_usage(R"({"logical_count": [[0,0],[3,4]]})"));
  REQUIRE(sglang.layers.size() == 1);  // the dense layer is left out
  CHECK(sglang.layers[0].layer == 1);
  CHECK(sglang.layers[0].tokens == std::vector<double>{3, 4});
  const UsageTrace steps = must(parse_usage(R"({"logical_count": [[[1,0]],[[2,5]]]})"));
  CHECK(steps.layers[0].tokens == std::vector<double>{3, 5});
  CHECK(steps.layers[0].steps == std::vector<float>{1, 0, 2, 5});
  const UsageTrace csv = must(parse_usage("seq,layer,e0,e1\n0,2,3,1\n0,2,1,3\n1,2,0,1\n"));
  CHECK(csv.top_k == 2);
  CHECK(csv.layers[0].tokens == std::vector<double>{1, 3, 0, 2});
  REQUIRE(csv.layers[0].sets.size() == 2);
  CHECK(csv.layers[0].sets.counts == std::vector<double>{1, 2});
  const UsageTrace trace = must(parse_usage("layer,experts,e0,e1\n0,6,3,1\n0,6,2,\n0,6,,\n"));
  CHECK(trace.layers[0].tokens == std::vector<double>{0, 1, 1, 1, 0, 0});  // as TraceWriter writes
  CHECK(trace.layers[0].sets.total() == 2);
  const UsageTrace lines = must(
      parse_usage("{\"layer\": 0, \"experts\": [1, 0]}\n{\"layer\": 0, \"experts\": [1, 2]}\n"));
  CHECK(lines.layers[0].tokens == std::vector<double>{1, 2, 1});
  const UsageTrace again = must(parse_usage(write_usage(csv)));
  CHECK(again.top_k == 2);
  CHECK(again.layers[0].tokens == csv.layers[0].tokens);
  CHECK(again.layers[0].sets.experts == csv.layers[0].sets.experts);
  CHECK(again.layers[0].sets.counts == csv.layers[0].sets.counts);
  const auto file = std::filesystem::temp_directory_path() / "moe_write_usage_test.json";
  REQUIRE(write_usage(csv, file.string()).ok());
  CHECK(write_usage(must(read_usage(file.string()))) == write_usage(csv));
  CHECK_FALSE(write_usage(csv, file.string() + "/inside").ok());
  std::filesystem::remove(file);
  for (const char* bad :
       {"", "{}", "{\"logical_count\": 3}", "{\"logical_count\": [[1],[1,2],[\"x\"]]}",
        "a,b\n1,2\n", "layer,e0,e1\n0,1\n", "layer,e0,e1\n0,1,1\n", "layer,e0\n0,x\n",
        "layer,experts,e0\n0,2,2\n", "{\"layer\":0,\"experts\":[0.5]}",
        "{\"layer\":0,\"experts\":[1e30]}",
        "{\"format\":\"moe-usage-1\",\"top_k\":1e12,\"layers\":[{\"layer\":0,\"tokens\":[1]}]}",
        "{\"format\":\"moe-usage-1\",\"layers\":[{\"layer\":1,\"tokens\":[1]},"
        "{\"layer\":1,\"tokens\":[1]}]}",
        "{\"logical_count\": [[-1, 2]]}", "{\"layer\":0,\"experts\":[99999999]}",
        "{\"format\":\"moe-usage-1\",\"layers\":[{\"layer\":0,\"tokens\":[1],"
        "\"sets\":[[5,1]]}]}"}) {
    INFO(bad);
    CHECK(parse_usage(bad, "file").status().code() == StatusCode::invalid_argument);
  }
  CHECK(read_usage("/nowhere").status().code() == StatusCode::not_found);
}

TEST_CASE("published traces are read", "[placement][mission-72]") {
  if (!have_shared()) return skip("../shared is absent");
  const UsageTrace mixtral = shared_usage("mixtral_vllm/gsm8k_2_routing.jsonl");
  CHECK(mixtral.layers.size() == 32);
  CHECK(mixtral.top_k == 2);
  CHECK(mixtral.layers[0].experts() == 8);
  const UsageTrace gptoss = shared_usage("gptoss20b/gptoss20b_top4_traces.csv.gz");
  CHECK(gptoss.layers.size() == 24);
  CHECK(gptoss.top_k == 4);
  CHECK(gptoss.layers[5].sets.total() == 5432);
  const ExpertSets kept = prune(gptoss.layers[5].sets, 0.8);
  CHECK(kept.total() >= 0.8 * 5432);
  CHECK(kept.size() < gptoss.layers[5].sets.size());
}

TEST_CASE("slots are preserved: same experts per rank, stayers stay", "[placement][mission-65]") {
  using Slots = std::vector<int32_t>;
  const auto kept = [](int32_t ranks, int32_t slots, Slots before, Slots after) {
    const Cluster cluster = must(Cluster::uniform(ranks, slots));
    return must(preserve_slots({{{0, std::move(before)}}}, {{{0, std::move(after)}}}, cluster))
        .layers[0]
        .expert_of_slot;
  };
  CHECK(kept(2, 2, {0, 1, 2, 3}, {1, 0, 3, 2}) == Slots{0, 1, 2, 3});
  CHECK(kept(2, 2, {0, 1, 2, 3}, {2, 1, 0, 3}) == Slots{2, 1, 0, 3});
  CHECK(kept(2, 2, {0, 1, 2, 3}, {1, 3, 0, 2}) == Slots{3, 1, 2, 0});
  // The three of vLLM's own test (tests/distributed/test_eplb_algo.py @8744bb0): "simple",
  // "duplicates", "skewed_expert". It asserts that each rank's experts are those of the new
  // placement and that whoever stays is at its first old slot; this is the one answer that also
  // fills the rest in order.
  CHECK(kept(2, 4, {0, 1, 2, 3, 4, 5, 6, 7}, {1, 5, 0, 4, 6, 2, 7, 3}) ==
        Slots{0, 1, 5, 4, 2, 3, 6, 7});
  CHECK(kept(2, 5, {0, 1, 0, 2, 3, 4, 5, 6, 1, 2}, {0, 5, 4, 0, 1, 6, 2, 3, 2, 1}) ==
        Slots{0, 1, 0, 5, 4, 3, 2, 6, 1, 2});
  CHECK(kept(3, 4, {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3}, {0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0}) ==
        Slots{0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3});
}

TEST_CASE("slots are preserved on random placements as vLLM's test demands",
          "[placement][mission-65]") {
  placement::Random random(seed());
  for (int i = 0; i < 300; ++i) {
    const auto ranks = static_cast<int32_t>(1 + random.below(4));
    const auto slots = static_cast<int32_t>(1 + random.below(6));
    const auto experts = 1 + random.below(8);
    Placement before{{{0, {}}}}, after{{{0, {}}}};
    for (int32_t s = 0; s < ranks * slots; ++s) {
      before.layers[0].expert_of_slot.push_back(static_cast<int32_t>(random.below(experts)) - 1);
      after.layers[0].expert_of_slot.push_back(static_cast<int32_t>(random.below(experts)) - 1);
    }
    const Cluster cluster = must(Cluster::uniform(ranks, slots));
    const auto kept = must(preserve_slots(before, after, cluster)).layers[0].expert_of_slot;
    const auto of_rank = [&](const std::vector<int32_t>& all, int32_t rank) {
      return std::vector<int32_t>(all.begin() + rank * slots, all.begin() + (rank + 1) * slots);
    };
    for (int32_t r = 0; r < ranks; ++r) {
      const auto was = of_rank(before.layers[0].expert_of_slot, r);
      auto wanted = of_rank(after.layers[0].expert_of_slot, r), got = of_rank(kept, r);
      for (int32_t e : wanted) {
        const auto old = std::find(was.begin(), was.end(), e);
        if (old != was.end()) CHECK(got[old - was.begin()] == e);
      }
      std::sort(wanted.begin(), wanted.end());
      std::sort(got.begin(), got.end());
      CHECK(wanted == got);
    }
  }
}

TEST_CASE("a transfer plan fills every slot, receives once, shares the sending",
          "[placement][mission-65]") {
  placement::Random random(seed());
  for (int i = 0; i < 100; ++i) {
    const auto experts = static_cast<int32_t>(4 + random.below(20));
    const Cluster cluster = must(Cluster::uniform(4, (experts + 3) / 4 + 2, 2));
    const UsageTrace a = one_layer(random_tokens(random, experts));
    const UsageTrace b = one_layer(random_tokens(random, experts));
    const Placement before = must(place_eplb_global({a, cluster}));
    const Placement after =
        must(preserve_slots(before, must(place_eplb_global({b, cluster})), cluster));
    const auto transfers = must(plan_transfers(before, after, cluster));
    const auto rank = cluster.rank_of_slot();
    std::vector<int32_t> slots = before.layers[0].expert_of_slot;
    std::map<std::pair<int32_t, int32_t>, int> received;
    for (const Transfer& t : transfers) {
      CHECK(rank[t.to_slot] == t.to_rank);
      CHECK(rank[t.from_slot] == t.from_rank);
      if (t.from_rank != t.to_rank) {
        CHECK(before.layers[0].expert_of_slot[t.from_slot] == t.expert);
        CHECK(++received[{t.expert, t.to_rank}] == 1);
      }
      slots[t.to_slot] = t.expert;
    }
    for (size_t s = 0; s < slots.size(); ++s)
      if (after.layers[0].expert_of_slot[s] >= 0)
        CHECK(slots[s] == after.layers[0].expert_of_slot[s]);
    CHECK(must(plan_transfers(after, after, cluster)).empty());
  }
  // vLLM's shares: 2 owners, 5 receivers: 0 0 1 1 and the last to owner 0.
  const Cluster cluster = must(Cluster::uniform(7, 1));
  const auto t =
      must(plan_transfers({{{0, {0, 0, 1, 2, 3, 4, 5}}}}, {{{0, {0, 0, 0, 0, 0, 0, 0}}}}, cluster));
  std::vector<int32_t> from;
  for (const Transfer& one : t) from.push_back(one.from_rank);
  CHECK(from == std::vector<int32_t>{0, 0, 1, 1, 0});
}

TEST_CASE("transfer steps keep layers whole and bytes bounded", "[placement]") {
  std::vector<Transfer> plan;
  for (int32_t layer : {0, 0, 1, 2, 2, 2, 3}) plan.push_back({layer, 0, 0, 0, 1, 1});
  CHECK(transfer_steps(plan, 10, 30) == std::vector<size_t>{3, 6, 7});
  CHECK(transfer_steps(plan, 10, 1) == std::vector<size_t>{2, 3, 6, 7});
  CHECK(transfer_steps({}, 10, 1).empty());
}

TEST_CASE("the first look comes after a quarter of the interval", "[placement][mission-65]") {
  RebalanceTimer timer(100);
  std::vector<int> looks;
  for (int step = 1; step <= 250; ++step)
    if (timer.tick()) looks.push_back(step);
  CHECK(looks == std::vector<int>{25, 125, 225});
}

TEST_CASE("rebalancing: only if worse than allowed, worth it, and seen often enough",
          "[placement][mission-65]") {
  std::vector<double> tokens(16, 100.0);
  tokens[0] = tokens[1] = 1000;
  const UsageTrace usage = one_layer(tokens);
  const Cluster cluster = must(Cluster::uniform(4, 5));
  const Placement before = must(place_linear({usage, cluster}));
  PlacementProblem problem{usage, cluster};
  problem.previous = &before;
  const RebalanceDecision move = must(decide_rebalance(problem));
  INFO(move.reason);
  REQUIRE(move.move);
  CHECK(move.balancedness_after > move.balancedness_before + 0.02);
  CHECK(move.gain_us > move.cost_us);
  CHECK(must(plan_transfers(before, move.placement, cluster)) == move.transfers);
  problem.previous = &move.placement;  // once moved, it stays: no flapping
  CHECK_FALSE(must(decide_rebalance(problem)).move);
  problem.previous = &before;
  CHECK_FALSE(must(decide_rebalance(problem, {.interval = 1, .move_bytes_per_second = 1e6})).move);
  CHECK_FALSE(must(decide_rebalance(problem, {.min_tokens = 1e6})).move);
  CHECK_FALSE(must(decide_rebalance(problem, {.max_bytes = 1})).move);
  problem.previous = nullptr;
  CHECK_FALSE(decide_rebalance(problem).ok());
}

TEST_CASE("a move of limited bytes takes the layers that gain most", "[placement][mission-65]") {
  UsageTrace usage;
  for (int32_t layer = 0; layer < 3; ++layer) {
    std::vector<double> tokens(16, 100.0);
    tokens[0] = tokens[1] = 400 + 400 * layer;  // the last one is worst
    usage.layers.push_back({layer, tokens});
  }
  const Cluster cluster = must(Cluster::uniform(4, 5));
  const Placement before = must(place_linear({usage, cluster}));
  PlacementProblem problem{usage, cluster};
  problem.previous = &before;
  const RebalanceDecision all = must(decide_rebalance(problem));
  REQUIRE(all.move);
  std::map<int32_t, int> copies;
  for (const Transfer& t : all.transfers) copies[t.layer] += t.from_rank != t.to_rank;
  REQUIRE(copies.size() == 3);
  const double bytes = copies[2] * problem.workload.expert_bytes;
  const RebalanceDecision some = must(decide_rebalance(problem, {.max_bytes = bytes}));
  INFO(some.reason);
  REQUIRE(some.move);
  CHECK(static_cast<double>(moved_copies(some.transfers)) * problem.workload.expert_bytes <= bytes);
  CHECK(some.placement.layers[2].expert_of_slot == all.placement.layers[2].expert_of_slot);
  CHECK(some.placement.layers[0].expert_of_slot == before.layers[0].expert_of_slot);
}

TEST_CASE("rebalancing follows the objective: even tokens, uneven active experts",
          "[placement][mission-65]") {
  // Every expert gets equal tokens, but the pairs that come together sit on one rank.
  ExpertSets pairs;
  for (int32_t e = 0; e < 8; e += 2) pairs.add(std::vector<int32_t>{e, e + 1}, 100);
  UsageTrace usage = one_layer(std::vector<double>(8, 100.0), pairs);
  usage.top_k = 2;
  const Cluster cluster = must(Cluster::uniform(4, 2));
  const Placement before = must(place_linear({usage, cluster}));
  PlacementProblem problem{usage, cluster};
  problem.previous = &before;
  CHECK_FALSE(must(decide_rebalance(problem)).move);  // many tokens: all is even
  problem.workload.tokens_per_step = 1;
  const RebalanceDecision move = must(decide_rebalance(problem));
  INFO(move.reason);
  REQUIRE(move.move);
  CHECK(must(expected_set_time(usage.layers[0], cluster, before.layers[0])) == 2);
  CHECK(must(expected_set_time(usage.layers[0], cluster, move.placement.layers[0])) == 1);
  problem.previous = &move.placement;
  CHECK_FALSE(must(decide_rebalance(problem)).move);
}

TEST_CASE("a burst adds replicas and its end removes them, without flapping",
          "[placement][mission-69]") {
  ReplicationController control = must(ReplicationController::create(2, {.hold = 2}));
  std::vector<std::pair<int, ReplicaChange>> seen;
  for (int window = 0; window < 60; ++window) {
    const bool burst = window >= 10 && window < 30;
    const double wobble = window % 2 ? 0.05 : -0.05;
    for (const ReplicaChange& c :
         must(control.observe(std::vector<double>{burst ? 2.0 : 0.2, 0.75 + wobble})))
      seen.emplace_back(window, c);
  }
  // Expert 0: 2.0 on one copy, 1.0 on two, 0.67 on three: two more. Then 0.2: back to one.
  REQUIRE(seen.size() == 4);
  CHECK(seen[0].first == 11);
  CHECK(seen[0].second == ReplicaChange{0, 1});
  CHECK(seen[1].second == ReplicaChange{0, 1});
  CHECK(seen[1].first == 14);
  CHECK(seen[2].second == ReplicaChange{0, -1});
  CHECK(seen[3].second == ReplicaChange{0, -1});
  CHECK(seen[2].first >= 30);
  CHECK(control.replicas() == std::vector<int32_t>{1, 1});
  CHECK_FALSE(ReplicationController::create(2, {.add_above = 0.2}).ok());
}

TEST_CASE("replicas serve only under load, with hysteresis", "[placement][mission-64]") {
  OverloadGate gate(0.8, 0.6);
  std::vector<bool> open;
  for (double u : {0.5, 0.75, 0.81, 0.7, 0.61, 0.59, 0.7}) open.push_back(gate.observe(u));
  CHECK(open == std::vector<bool>{false, false, true, true, true, false, false});
  const Cluster cluster = must(Cluster::uniform(2, 3));
  const Placement both{{{0, {0, 1, 2, 3, 0, 1}}}};
  CHECK(must(primaries(both, cluster)).layers[0].expert_of_slot ==
        std::vector<int32_t>{0, 1, 2, 3, -1, -1});
}

TEST_CASE("scaling advice: more ranks above 0.7, fewer below 0.3, never under the minimum",
          "[placement][mission-71][mission-69]") {
  placement::Random random(seed());
  const UsageTrace usage = one_layer(random_tokens(random, 64));
  const Cluster cluster = must(Cluster::uniform(8, 8));
  const PlacementProblem problem{usage, cluster};
  const ScalingAdvice more = must(scaling_advice(problem, 0.9));
  CHECK(more.ranks == 15);  // ceil(8 x 0.9 / 0.5)
  CHECK(more.us_then < more.us_now);
  CHECK(more.expert_bytes_per_rank == Approx(44040192.0 * more.slots_per_rank));
  CHECK(must(scaling_advice(problem, 0.5)).ranks == 8);
  CHECK(must(scaling_advice(problem, 0.1)).ranks == 2);
  CHECK(must(scaling_advice(problem, 0.0, {.min_ranks = 3})).ranks == 3);
  CHECK(must(scaling_advice(problem, 5.0, {.max_ranks = 16})).ranks == 16);
  CHECK_FALSE(scaling_advice(problem, -1).ok());
  // A sample controller: follows the advice until demand fits.
  double demand = 7.5;
  int32_t ranks = 8;
  for (int i = 0; i < 5; ++i)
    ranks = must(scaling_advice({usage, must(Cluster::uniform(ranks, 64))}, demand / ranks)).ranks;
  CHECK(demand / ranks <= 0.7);
  CHECK(demand / ranks >= 0.3);
}

TEST_CASE("placements and links as JSON, there and back", "[placement]") {
  const Placement placement{{{3, {0, 1, -1, 2}}, {4, {2, 1, 0, -1}}}};
  const Placement again = must(parse_placement(write_placement(placement)));
  REQUIRE(again.layers.size() == 2);
  CHECK(again.layers[1].layer == 4);
  CHECK(again.layers[1].expert_of_slot == placement.layers[1].expert_of_slot);
  for (const char* bad : {"", "{}", "{\"layers\":[{\"layer\":1}]}",
                          "{\"layers\":[{\"layer\":1,\"expert_of_slot\":[0.5]}]}"})
    CHECK(parse_placement(bad).status().code() == StatusCode::invalid_argument);
  Cluster cluster = must(Cluster::uniform(2, 2, 2));
  REQUIRE(parse_links(R"({"rack": {"bytes_per_second": 1e9}})", "links", cluster).ok());
  CHECK(cluster.byte_seconds(0, 1) == Approx(1e-9));
  for (const char* bad :
       {R"({"seconds_per_byte": [[0]]})", "[[0, 1], [1]]", "[[0, 1, 1], [0]]",
        "[[0, \"x\"], [1, 0]]", "[[0, -1], [1, 0]]", "", R"({"rack": {"bytes_per_second": 0}})"}) {
    INFO(bad);
    CHECK(parse_links(bad, "links", cluster).code() == StatusCode::invalid_argument);
  }
  CHECK(cluster.seconds_per_byte.empty());
  REQUIRE(parse_links("[[0, 2], [3, 0]]", "links", cluster).ok());
  CHECK(cluster.byte_seconds(1, 0) == 3);
}
