// What policies remember across a restart.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "moe/simulate.h"
#include "store/residency.h"
#include "store/trace_forwards.h"
#include "store/traces.h"

using namespace moe;

namespace {

// Forwards of one to four experts; sequences end now and then.
RoutingTrace busy_trace(std::mt19937_64& rng, int32_t layers, int32_t experts, int forwards) {
  RoutingTrace trace = test::empty_trace(layers, experts, 4);
  for (int i = 0; i < forwards; ++i) {
    std::vector<int32_t> set(static_cast<size_t>(experts));
    std::iota(set.begin(), set.end(), 0);
    std::shuffle(set.begin(), set.end(), rng);
    set.resize(1 + rng() % 4);
    if (rng() % 2) set[0] = static_cast<int32_t>(rng() % 2), std::erase(set, set[0] ^ 1);
    std::sort(set.begin(), set.end());
    set.erase(std::unique(set.begin(), set.end()), set.end());
    test::add(trace, i % layers, set);
    trace.rows.back().seq = i / 50;
  }
  trace.weights.resize(trace.experts.size());
  for (float& weight : trace.weights) weight = static_cast<float>(rng() % 1000) / 1000;
  return trace;
}

// Replays the rest of `forwards`, and tells what happened as simulate() does.
std::vector<PagingEvent> replay(TraceForwards& forwards, EvictionPolicy& policy, Residency& pool,
                                int count) {
  std::vector<PagingEvent> events;
  while (count-- > 0 && forwards.next()) {
    if (forwards.new_sequence()) policy.sequence_ended();
    policy.accessed(forwards.access());
    std::vector<Need> pending;
    for (const int32_t expert : forwards.experts().distinct()) pending.push_back({expert});
    std::vector<Residency::Decision> wave;
    const int32_t layer = forwards.row().layer;
    while (!pending.empty()) {
      REQUIRE(pool.take_wave(layer, nullptr, pending, wave).ok());
      for (const auto& taken : wave)
        events.push_back({{layer, taken.need.expert}, taken.hit, taken.evicted});
    }
  }
  return events;
}

}  // namespace

TEST_CASE("a policy goes on from another one's memory as if nothing had happened",
          "[mission-85][mission-108]") {
  std::mt19937_64 rng(test::seed());
  struct All final : EvictionCandidates {
    bool contains(ExpertId) const noexcept override { return true; }
  } all;
  for (int round = 0; round < 20; ++round) {
    const RoutingTrace trace = busy_trace(rng, 3, 8, 400);
    const auto uses = popularity(trace);
    for (const EvictionPolicyRow& row : eviction_policy_rows()) {
      const int64_t slots = 1 + static_cast<int64_t>(rng() % 20);
      const int stop = static_cast<int>(rng() % 400);
      CAPTURE(row.name, slots, stop);
      std::vector<PagingEvent> whole;
      REQUIRE(simulate(trace, row.name, slots, &whole).ok());

      TraceForwards forwards(trace);
      auto first = row.make({.layers = trace.layers, .popularity = *uses});
      Residency pool(trace.layers, slots, **first);
      std::vector<PagingEvent> events = replay(forwards, **first, pool, stop);

      auto second = row.make({.layers = trace.layers, .popularity = *uses});
      Residency next(trace.layers, slots, **second);
      for (const LayerExperts& layer : trace.layers)
        for (int32_t e = layer.experts; e-- > 0;) {
          ExpertId nobody;
          if (pool.resident({layer.layer, e}))
            REQUIRE(next.admit({layer.layer, e}, all, &nobody).ok());
        }
      const PolicyMemory memory = (*first)->memory();
      REQUIRE((*second)->restore(memory).ok());
      CHECK((*second)->memory() == memory);
      const auto rest = replay(forwards, **second, next, 1000);
      events.insert(events.end(), rest.begin(), rest.end());
      CHECK(events == whole);
    }
  }
}

TEST_CASE("a policy refuses what is not its memory, and stays as it was", "[mission-108]") {
  std::mt19937_64 rng(test::seed());
  const RoutingTrace trace = busy_trace(rng, 3, 8, 100);
  for (const EvictionPolicyRow& row : eviction_policy_rows()) {
    CAPTURE(row.name);
    auto policy = row.make({.layers = trace.layers});
    TraceForwards forwards(trace);
    Residency pool(trace.layers, 7, **policy);
    replay(forwards, **policy, pool, 100);
    const PolicyMemory right = (*policy)->memory();
    REQUIRE(right.parts.size() >= 4);
    std::vector<PolicyMemory> wrong(1);
    for (const double value : {-1.0, 0.5, 1e300}) {
      wrong.push_back(right);
      wrong.back().parts[1].values[0] = value;  // a time
    }
    for (size_t k = 0; k < right.parts.size(); ++k) {
      PolicyMemory bad = right;
      bad.parts[k].name += "?";
      wrong.push_back(bad);
      bad = right;
      bad.parts[k].values.push_back(0);
      wrong.push_back(bad);
      for (const double value : {std::nan(""), std::numeric_limits<double>::infinity()}) {
        bad = right;
        bad.parts[k].values[0] = value;
        wrong.push_back(bad);
      }
      bad = right;
      bad.parts.erase(bad.parts.begin() + static_cast<std::ptrdiff_t>(k));
      wrong.push_back(bad);
    }
    for (const PolicyMemory& bad : wrong) {
      CHECK((*policy)->restore(bad).code() == StatusCode::invalid_argument);
      CHECK((*policy)->memory() == right);
    }
  }
}
