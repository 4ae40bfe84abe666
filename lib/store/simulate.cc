// Replays a trace through an eviction policy, as a paging store would.
#include "moe/simulate.h"

#include "core/error.h"
#include "store/residency.h"
#include "store/trace_forwards.h"

namespace moe {
namespace {

Result<std::unique_ptr<EvictionPolicy>> make_by_name(const RoutingTrace& trace,
                                                     std::string_view name) {
  if (name == "belady") return make_belady(trace);
  if (name == "belady-per-layer") return make_belady_per_layer(trace);
  MOE_ASSIGN_OR_RETURN(auto uses, popularity(trace));
  return make_eviction_policy(name, {.layers = trace.layers, .popularity = std::move(uses)});
}

Status replay(const RoutingTrace& trace, EvictionPolicy& policy, PagingResult& result,
              std::vector<PagingEvent>* events) {
  Residency pool(trace.layers, result.slots, policy);
  TraceForwards forwards(trace);
  std::vector<Need> pending;
  std::vector<Residency::Decision> wave;
  while (forwards.next()) {
    if (forwards.new_sequence()) policy.sequence_ended();
    policy.accessed(forwards.access());
    ++result.forwards;
    const auto needed = forwards.experts().distinct();
    pending.clear();
    for (const int32_t expert : needed) pending.push_back({expert});
    const int32_t layer = forwards.row().layer;
    while (!pending.empty()) {
      ++result.waves;
      MOE_RETURN_IF_ERROR(pool.take_wave(layer, nullptr, pending, wave));
      if (wave.empty())
        return error(StatusCode::failed_precondition, {.layer = layer},
                     "eviction policy '{}' lets nobody go, though no expert is in use",
                     policy.name());
      for (const Residency::Decision& taken : wave) {
        ++(taken.hit ? result.hits : result.misses);
        if (events) events->push_back({{layer, taken.need.expert}, taken.hit, taken.evicted});
      }
    }
  }
  return {};
}

}  // namespace

Result<PagingResult> simulate(const RoutingTrace& trace, EvictionPolicy& policy, int64_t slots,
                              std::vector<PagingEvent>* events) {
  return guarded({}, [&]() -> Result<PagingResult> {
    if (slots < 1) return invalid_argument({}, "slots is {}; wanted 1 or more", slots);
    MOE_RETURN_IF_ERROR(validate(trace));
    PagingResult result{.policy = policy.name(), .slots = slots};
    MOE_RETURN_IF_ERROR(replay(trace, policy, result, events));
    return result;
  });
}

Result<PagingResult> simulate(const RoutingTrace& trace, std::string_view policy, int64_t slots,
                              std::vector<PagingEvent>* events) {
  return guarded({}, [&]() -> Result<PagingResult> {
    MOE_RETURN_IF_ERROR(validate(trace));
    MOE_ASSIGN_OR_RETURN(const auto made, make_by_name(trace, policy));
    return simulate(trace, *made, slots, events);
  });
}

Result<std::vector<double>> popularity(const RoutingTrace& trace) {
  return guarded({}, [&]() -> Result<std::vector<double>> {
    MOE_RETURN_IF_ERROR(validate(trace));
    const ExpertIndex index(trace.layers);
    std::vector<double> uses(static_cast<size_t>(index.experts()));
    TraceForwards forwards(trace);
    while (forwards.next()) {
      for (const int32_t expert : forwards.experts().distinct())
        ++uses[static_cast<size_t>(index.find({forwards.row().layer, expert}))];
    }
    return uses;
  });
}

}  // namespace moe
