// What a pool of slots would do on a recorded trace: hits and misses of an eviction policy, and of
// Belady's optimum, which knows the future.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "moe/eviction.h"
#include "moe/export.h"
#include "moe/status.h"
#include "moe/trace.h"

namespace moe {

// One expert of one forward.
struct PagingEvent {
  ExpertId id;       // layer and expert
  bool hit = false;  // resident when the forward began
  ExpertId evicted;  // who left for it; {}: nobody

  friend bool operator==(const PagingEvent&, const PagingEvent&) = default;
};

// Outcome of a replay. An expert counts once per forward, however many of its rows chose it.
struct PagingResult {
  std::string policy;    // its name
  int64_t slots = 0;     // over all layers, spare ones excluded
  int64_t hits = 0;      // needed and resident
  int64_t misses = 0;    // needed and absent
  int64_t forwards = 0;  // of one layer each
  int64_t waves = 0;     // more than forwards where a forward's experts did not fit at once

  // hits / (hits + misses), or 0 if there are none.
  double hit_rate() const {
    const int64_t accesses = hits + misses;
    return accesses == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(accesses);
  }
};

// Replays `trace` on a pool of `slots` (over all layers, spares excluded) that is empty at first:
// every miss is admitted, and no expert leaves while its forward still needs it. `policy` must be
// new and made for trace.layers. Appends to `events`, if given, what happened to every expert.
MOE_API Result<PagingResult> simulate(const RoutingTrace& trace, EvictionPolicy& policy,
                                      int64_t slots, std::vector<PagingEvent>* events = nullptr);

// The same with a policy by name: a row of eviction_policy_rows() (`pin` gets the popularity of
// this very trace, so it is measured in-sample), "belady" or "belady-per-layer".
MOE_API Result<PagingResult> simulate(const RoutingTrace& trace, std::string_view policy,
                                      int64_t slots, std::vector<PagingEvent>* events = nullptr);

// Evicts the expert whose next use in `trace` is farthest away; serves one replay of that trace. No
// policy misses less where every forward's experts fit at once. Holds no reference to `trace`.
MOE_API Result<std::unique_ptr<EvictionPolicy>> make_belady(const RoutingTrace& trace);
// The same with an equal share of the slots for every layer.
MOE_API Result<std::unique_ptr<EvictionPolicy>> make_belady_per_layer(const RoutingTrace& trace);

// How often each expert is used in `trace`: EvictionOptions::popularity.
MOE_API Result<std::vector<double>> popularity(const RoutingTrace& trace);

}  // namespace moe
