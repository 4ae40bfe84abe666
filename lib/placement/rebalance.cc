#include "moe/rebalance.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace moe {
namespace {
// Seconds until the last rank has received its copies.
double transfer_seconds(std::span<const Transfer> transfers, int32_t ranks, double expert_bytes,
                        double bytes_per_second) {
  std::vector<double> received(ranks, 0.0), sent(ranks, 0.0);
  for (const Transfer& t : transfers) {
    if (t.from_rank == t.to_rank) continue;
    received[t.to_rank] += expert_bytes;
    sent[t.from_rank] += expert_bytes;
  }
  const double most = std::max(*std::max_element(received.begin(), received.end()),
                               *std::max_element(sent.begin(), sent.end()));
  return most / bytes_per_second;
}

// Keeps the layers that gain most time, as far as `max_bytes` reach; the others stay as they are.
Result<Placement> limited(const PlacementProblem& problem, const Prediction& before,
                          const Placement& next, double max_bytes) {
  MOE_ASSIGN_OR_RETURN(const Prediction after, evaluate(problem, next));
  struct Gain {
    double us;
    size_t layer;
    double bytes;
  };
  std::vector<Gain> gains;
  for (size_t l = 0; l < next.layers.size(); ++l) {
    MOE_ASSIGN_OR_RETURN(const auto transfers, plan_transfers({{problem.previous->layers[l]}},
                                                              {{next.layers[l]}}, problem.cluster));
    gains.push_back({before.layers[l].us() - after.layers[l].us(), l,
                     static_cast<double>(moved_copies(transfers)) * problem.workload.expert_bytes});
  }
  std::stable_sort(gains.begin(), gains.end(),
                   [](const Gain& a, const Gain& b) { return a.us > b.us; });
  Placement out = *problem.previous;
  for (const Gain& gain : gains) {
    if (gain.us <= 0 || gain.bytes > max_bytes) continue;
    max_bytes -= gain.bytes;
    out.layers[gain.layer] = next.layers[gain.layer];
  }
  return out;
}

Status validate_options(const RebalanceOptions& o) {
  if (o.interval > 0 && o.min_balancedness >= 0 && o.hysteresis >= 0 && o.max_bytes >= 0 &&
      o.move_bytes_per_second > 0 && o.min_tokens >= 0)
    return {};
  return invalid_argument({},
                          "rebalance options: interval {}, min_balancedness {}, hysteresis {}, "
                          "max_bytes {}, move_bytes_per_second {}, min_tokens {}",
                          o.interval, o.min_balancedness, o.hysteresis, o.max_bytes,
                          o.move_bytes_per_second, o.min_tokens);
}

bool enough_tokens(const UsageTrace& usage, double per_expert) {
  return std::all_of(usage.layers.begin(), usage.layers.end(), [&](const LayerUsage& layer) {
    return std::accumulate(layer.tokens.begin(), layer.tokens.end(), 0.0) >=
           per_expert * layer.experts();
  });
}

Result<RebalanceDecision> decide(const PlacementProblem& problem, const RebalanceOptions& options) {
  MOE_RETURN_IF_ERROR(validate_options(options));
  if (!problem.previous)
    return invalid_argument({}, "a rebalance needs the placement that is in place (previous)");
  RebalanceDecision out;
  out.placement = *problem.previous;
  MOE_ASSIGN_OR_RETURN(const Prediction before, evaluate(problem, *problem.previous));
  out.balancedness_before = out.balancedness_after = before.balancedness;
  const auto stay = [&](std::string reason) {
    out.reason = std::move(reason);
    return out;
  };
  if (!enough_tokens(problem.usage, options.min_tokens))
    return stay(fmt::format("fewer than {} tokens per expert were seen", options.min_tokens));
  // Even tokens are all there is to gain only where tokens are what limits.
  const bool tokens = before.objective == Objective::tokens;
  if (tokens && before.balancedness >= options.min_balancedness)
    return stay(fmt::format("balancedness {:.3f} is not below {:.3f}", before.balancedness,
                            options.min_balancedness));

  MOE_ASSIGN_OR_RETURN(Placement next, place_auto(problem));
  MOE_ASSIGN_OR_RETURN(next, preserve_slots(*problem.previous, next, problem.cluster));
  if (options.max_bytes > 0) {
    MOE_ASSIGN_OR_RETURN(next, limited(problem, before, next, options.max_bytes));
  }
  MOE_ASSIGN_OR_RETURN(const Prediction after, evaluate(problem, next));
  MOE_ASSIGN_OR_RETURN(auto transfers, plan_transfers(*problem.previous, next, problem.cluster));
  out.gain_us = (before.us - after.us) * options.interval;
  out.cost_us =
      1e6 * transfer_seconds(transfers, problem.cluster.ranks(), problem.workload.expert_bytes,
                             options.move_bytes_per_second);
  const double gained = tokens ? after.balancedness - before.balancedness
                               : 1 - after.value / std::max(before.value, 1e-300);
  if (gained < options.hysteresis)
    return stay(fmt::format("{} would gain {:.3f}: less than {:.3f}",
                            tokens ? "balancedness" : to_string(before.objective), gained,
                            options.hysteresis));
  if (out.gain_us <= out.cost_us)
    return stay(
        fmt::format("moving costs {:.0f} us and would gain {:.0f} us", out.cost_us, out.gain_us));
  out.move = true;
  out.balancedness_after = after.balancedness;
  out.placement = std::move(next);
  out.transfers = std::move(transfers);
  out.reason = fmt::format("{} from {:.3f} to {:.3f} for {} copies",
                           tokens ? "balancedness" : to_string(before.objective),
                           tokens ? before.balancedness : before.value,
                           tokens ? after.balancedness : after.value, moved_copies(out.transfers));
  return out;
}

}  // namespace

Result<RebalanceDecision> decide_rebalance(const PlacementProblem& problem,
                                           const RebalanceOptions& options) {
  return guarded({.phase = Phase::plan}, [&] { return decide(problem, options); });
}

bool RebalanceTimer::tick() {
  if (++step_ < interval_) return false;
  step_ = 0;
  return true;
}

}  // namespace moe
