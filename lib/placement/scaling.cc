#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "moe/rebalance.h"
#include "placement/layer.h"

namespace moe {
namespace {

// Half way between the thresholds: neither direction is near.
double aim(const ScalingOptions& o) { return (o.add_above + o.remove_below) / 2; }

int32_t wanted_ranks(int32_t now, double utilisation, const ScalingOptions& o) {
  if (utilisation <= o.add_above && utilisation >= o.remove_below) return now;
  const double ideal = std::ceil(now * utilisation / aim(o));
  const int32_t most = o.max_ranks > 0 ? o.max_ranks : 65536;
  const auto ranks = static_cast<int32_t>(std::clamp(ideal, 1.0, 65536.0));
  return std::clamp(ranks, o.min_ranks, std::max(most, o.min_ranks));
}

// The same slots in all, spread over `ranks` equal ones; nodes keep their size.
Cluster resized(const Cluster& cluster, int32_t ranks, int32_t experts) {
  Cluster out = cluster;
  const int64_t slots = std::max<int64_t>(cluster.total_slots(), experts);
  out.slots.assign(ranks, static_cast<int32_t>((slots + ranks - 1) / ranks));
  const int32_t node_size = (cluster.ranks() + cluster.nodes() - 1) / cluster.nodes();
  out.node_of_rank.clear();
  for (int32_t r = 0; r < ranks; ++r) out.node_of_rank.push_back(r / node_size);
  if (!cluster.rack_of_node.empty()) {
    out.rack_of_node.resize(out.nodes());
    for (size_t n = 0; n < out.rack_of_node.size(); ++n)
      out.rack_of_node[n] =
          n < cluster.rack_of_node.size() ? cluster.rack_of_node[n] : cluster.rack_of_node.back();
  }
  out.seconds_per_byte.clear();  // unknown for new ranks: the classes' speeds serve
  return out;
}

Result<double> step_us(const PlacementProblem& problem) {
  MOE_ASSIGN_OR_RETURN(const Placement placement, place_balanced(problem));
  MOE_ASSIGN_OR_RETURN(const Prediction prediction, evaluate(problem, placement));
  return prediction.us;
}

}  // namespace

Result<ScalingAdvice> scaling_advice(const PlacementProblem& problem, double utilisation,
                                     const ScalingOptions& options) {
  return guarded({.phase = Phase::plan}, [&]() -> Result<ScalingAdvice> {
    MOE_RETURN_IF_ERROR(validate(problem.cluster));
    MOE_RETURN_IF_ERROR(validate(problem.usage));
    if (!(utilisation >= 0) || !std::isfinite(utilisation))
      return invalid_argument({}, "utilisation is {}; wanted 0 or more", utilisation);
    if (!(options.remove_below >= 0 && options.remove_below < options.add_above) ||
        options.min_ranks < 1)
      return invalid_argument({}, "remove_below {} must be below add_above {}, min_ranks {} >= 1",
                              options.remove_below, options.add_above, options.min_ranks);
    int32_t experts = 0;
    for (const LayerUsage& layer : problem.usage.layers)
      experts = std::max(experts, layer.experts());

    ScalingAdvice out;
    const int32_t now = problem.cluster.ranks();
    out.ranks = wanted_ranks(now, utilisation, options);
    const Cluster then = resized(problem.cluster, out.ranks, experts);
    out.slots_per_rank = out.ranks == now ? *std::max_element(problem.cluster.slots.begin(),
                                                              problem.cluster.slots.end())
                                          : then.slots[0];
    out.expert_bytes_per_rank = problem.workload.expert_bytes * out.slots_per_rank *
                                static_cast<double>(problem.usage.layers.size());
    PlacementProblem same{problem.usage, problem.cluster, problem.workload, problem.objective};
    // The same demand on other ranks.
    same.workload.tokens_per_step = placement::resolved(problem).tokens_per_step;
    MOE_ASSIGN_OR_RETURN(out.us_now, step_us(same));
    out.us_then = out.us_now;
    if (out.ranks != now) {
      PlacementProblem other{problem.usage, then, same.workload, problem.objective};
      MOE_ASSIGN_OR_RETURN(out.us_then, step_us(other));
    }
    const char* verdict = out.ranks > now ? "add ranks" : out.ranks < now ? "remove ranks" : "stay";
    out.reason = fmt::format("{}: utilisation {:.2f}, thresholds {:.2f} and {:.2f}", verdict,
                             utilisation, options.remove_below, options.add_above);
    return out;
  });
}

}  // namespace moe
