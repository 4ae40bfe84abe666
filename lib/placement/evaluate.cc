#include "placement/evaluate.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "moe/balance.h"
#include "placement/match.h"
#include "placement/nearest.h"
#include "placement/sample.h"

namespace moe {
namespace placement {
namespace {
ReplicaTable table_of(const LayerProblem& layer, const LayerPlacement& placement) {
  return *replica_table(placement, layer.cluster, layer.experts());
}

// What an average token sends.
struct Traffic {
  double rows[kLinkClasses] = {};
  double seconds[kLinkClasses] = {};  // per byte of a row
  double total_seconds() const { return seconds[1] + seconds[2] + seconds[3]; }
};

// One row per remote node, to the first rank needed there; from it one per further rank.
class RowCounter {
 public:
  RowCounter(const Cluster& cluster, const ReplicaTable& table)
      : cluster_(cluster), table_(table), entry_(cluster.nodes(), -1), seen_(cluster.ranks(), 0) {}

  void add(int32_t source, std::span<const int32_t> copies, Traffic& traffic) {
    entry_[cluster_.node(source)] = source;
    seen_[source] = 1;
    for (int32_t copy : copies) {
      const int32_t rank = table_.rank[copy];
      if (seen_[rank]) continue;
      seen_[rank] = 1;
      int32_t& entry = entry_[cluster_.node(rank)];
      const int32_t from = entry >= 0 ? entry : source;
      if (entry < 0) entry = rank;
      const auto link = static_cast<int>(cluster_.link(from, rank));
      traffic.rows[link] += 1;
      traffic.seconds[link] += cluster_.byte_seconds(from, rank);
    }
    entry_[cluster_.node(source)] = -1;
    seen_[source] = 0;
    for (int32_t copy : copies) {
      entry_[cluster_.node(table_.rank[copy])] = -1;
      seen_[table_.rank[copy]] = 0;
    }
  }

 private:
  const Cluster& cluster_;
  const ReplicaTable& table_;
  std::vector<int32_t> entry_;  // (nodes): the rank through which the token came in
  std::vector<uint8_t> seen_;   // (ranks)
};

// Sources take turns.
Traffic mean_traffic(const LayerProblem& layer, const LayerPlacement& placement,
                     const ExpertSets& tokens) {
  const ReplicaTable table = table_of(layer, placement);
  RowCounter counter(layer.cluster, table);
  Traffic traffic;
  std::vector<int32_t> copies;
  for (int64_t t = 0; t < tokens.size(); ++t) {
    const auto source = static_cast<int32_t>(t % layer.cluster.ranks());
    copies.resize(tokens[t].size());
    choose_nearest(table, tokens[t], source, t, copies);
    counter.add(source, copies, traffic);
  }
  for (int link = 0; link < kLinkClasses; ++link) {
    traffic.rows[link] /= static_cast<double>(tokens.size());
    traffic.seconds[link] /= static_cast<double>(tokens.size());
  }
  return traffic;
}

double worst_byte_seconds(const Cluster& cluster) {
  if (!cluster.seconds_per_byte.empty())
    return *std::max_element(cluster.seconds_per_byte.begin(), cluster.seconds_per_byte.end());
  return cluster.byte_seconds(0, cluster.ranks() - 1);  // nodes and racks ascend
}

double latency(const Cluster& cluster, const Traffic& traffic) {
  if (traffic.rows[3] > 0) return cluster.cross_link.seconds;
  if (traffic.rows[2] > 0) return cluster.rack_link.seconds;
  return traffic.rows[1] > 0 ? cluster.node_link.seconds : 0;
}

double traffic_value(const LayerProblem& layer, const Traffic& traffic, double imbalance) {
  const double worst = worst_byte_seconds(layer.cluster);
  return worst > 0 ? traffic.total_seconds() / worst * imbalance : 0;
}

}  // namespace

Samples draw_samples(const LayerProblem& layer) { return {draw_tokens(layer), draw_steps(layer)}; }

double max_over_mean(const std::vector<double>& load) {
  const double sum = std::accumulate(load.begin(), load.end(), 0.0);
  const double max = *std::max_element(load.begin(), load.end());
  return sum > 0 ? max * static_cast<double>(load.size()) / sum : 1;
}

LayerPlacement without_twins(const LayerProblem& layer, LayerPlacement placement) {
  std::vector<int32_t> holder(layer.experts(), -1);  // the last rank found to hold each expert
  auto slot = placement.expert_of_slot.begin();
  for (int32_t r = 0; r < layer.cluster.ranks(); ++r)
    for (int32_t i = 0; i < layer.cluster.slots[r]; ++i, ++slot)
      if (*slot >= 0 && std::exchange(holder[*slot], r) == r) *slot = -1;
  return placement;
}

std::vector<double> rank_tokens(const LayerProblem& layer, const LayerPlacement& placement) {
  std::vector<int32_t> copies(layer.experts(), 0);
  for (int32_t e : placement.expert_of_slot)
    if (e >= 0) ++copies[e];
  std::vector<double> load(layer.cluster.ranks(), 0.0);
  size_t slot = 0;
  for (int32_t r = 0; r < layer.cluster.ranks(); ++r)
    for (int32_t i = 0; i < layer.cluster.slots[r]; ++i)
      if (const int32_t e = placement.expert_of_slot[slot++]; e >= 0)
        load[r] += layer.usage.tokens[e] / copies[e];
  return load;
}

double mean_active(const LayerProblem& layer, const LayerPlacement& placement,
                   const ExpertSets& steps) {
  const ReplicaTable table = table_of(layer, placement);
  Matcher matcher(table);
  double sum = 0;
  for (int64_t i = 0; i < steps.size(); ++i) sum += steps.counts[i] * matcher.run(steps[i]);
  return steps.total() > 0 ? sum / steps.total() : 0;
}

LayerPrediction predict(const LayerProblem& layer, const LayerPlacement& placement,
                        const Samples& samples) {
  const Workload& w = layer.workload;
  const Cluster& cluster = layer.cluster;
  LayerPrediction out;
  out.layer = layer.usage.layer;
  out.rank_share = rank_tokens(layer, placement);
  const double imbalance = max_over_mean(out.rank_share);
  const double sum = std::accumulate(out.rank_share.begin(), out.rank_share.end(), 0.0);
  if (sum > 0)
    for (double& share : out.rank_share) share /= sum;
  out.active = mean_active(layer, placement, samples.steps);
  const Traffic traffic = mean_traffic(layer, placement, samples.tokens);
  std::copy(std::begin(traffic.rows), std::end(traffic.rows), out.rows);

  const double rank_tokens = static_cast<double>(w.tokens_per_step) / cluster.ranks();
  const double read = out.active * w.expert_bytes / cluster.device.bytes_per_second;
  const double math =
      rank_tokens * w.top_k * imbalance * w.flops_per_row / cluster.device.flops_per_second;
  out.compute_us = 1e6 * std::max(read, math);
  const double slowest = *std::max_element(std::begin(traffic.seconds), std::end(traffic.seconds));
  out.transfer_us =
      1e6 * (rank_tokens * imbalance * slowest * (w.dispatch_bytes + w.combine_bytes) +
             2 * latency(cluster, traffic));
  return out;
}

double value_of(Objective objective, const LayerProblem& layer, const LayerPlacement& placement,
                const Samples& samples) {
  if (objective == Objective::active) return mean_active(layer, placement, samples.steps);
  const LayerPlacement single = without_twins(layer, placement);
  const double imbalance = max_over_mean(rank_tokens(layer, single));
  if (objective != Objective::traffic) return imbalance;
  return traffic_value(layer, mean_traffic(layer, single, samples.tokens), imbalance);
}

namespace {

// Which part of the layer's time is the longest if all were even.
Objective limit_of(const LayerProblem& layer, const Samples& samples) {
  const Workload& w = layer.workload;
  const Cluster& cluster = layer.cluster;
  const double rank_tokens = static_cast<double>(w.tokens_per_step) / cluster.ranks();
  double active = 0;
  for (int64_t i = 0; i < samples.steps.size(); ++i)
    active += samples.steps.counts[i] * static_cast<double>(samples.steps[i].size());
  active /= std::max(samples.steps.total(), 1e-300) * cluster.ranks();
  const double read = active * w.expert_bytes / cluster.device.bytes_per_second;
  const double math = rank_tokens * w.top_k * w.flops_per_row / cluster.device.flops_per_second;
  // Inside one node all links are equal, and even tokens are even links.
  if (cluster.nodes() == 1 && cluster.seconds_per_byte.empty())
    return read > math ? Objective::active : Objective::tokens;
  // Experts spread evenly: a token's top_k draws among the units that links connect.
  const int32_t units = cluster.nodes() > 1 ? cluster.nodes() : cluster.ranks();
  const double others = std::min<double>(w.top_k, units) * (units - 1) / units;
  const double send =
      rank_tokens * others * worst_byte_seconds(cluster) * (w.dispatch_bytes + w.combine_bytes);
  if (send > read && send > math) return Objective::traffic;
  return read > math ? Objective::active : Objective::tokens;
}

}  // namespace

Objective resolved_objective(const PlacementProblem& problem, const std::vector<Samples>& samples) {
  if (problem.objective != Objective::automatic) return problem.objective;
  const Workload workload = resolved(problem);
  int64_t votes[4] = {};
  for (size_t i = 0; i < samples.size(); ++i)
    ++votes[static_cast<int>(limit_of(layer_problem(problem, workload, i), samples[i]))];
  return static_cast<Objective>(std::max_element(votes, votes + 4) - votes);
}

std::vector<Samples> draw_samples(const PlacementProblem& problem) {
  const Workload workload = resolved(problem);
  std::vector<Samples> samples;
  for (size_t i = 0; i < problem.usage.layers.size(); ++i)
    samples.push_back(draw_samples(layer_problem(problem, workload, i)));
  return samples;
}

}  // namespace placement

Result<Objective> limiting_objective(const PlacementProblem& problem) {
  return guarded({.phase = Phase::plan}, [&]() -> Result<Objective> {
    MOE_RETURN_IF_ERROR(placement::validate(problem));
    PlacementProblem open = problem;
    open.objective = Objective::automatic;
    return placement::resolved_objective(open, placement::draw_samples(open));
  });
}

Result<Prediction> evaluate(const PlacementProblem& problem, const Placement& placement) {
  return guarded({.phase = Phase::plan}, [&]() -> Result<Prediction> {
    MOE_RETURN_IF_ERROR(placement::validate(problem));
    MOE_RETURN_IF_ERROR(validate(placement, problem.cluster, problem.usage, true));
    const Workload workload = placement::resolved(problem);
    const auto samples = placement::draw_samples(problem);
    Prediction out;
    out.objective = placement::resolved_objective(problem, samples);
    const auto tokens = static_cast<double>(workload.tokens_per_step);
    std::vector<double> load, single_load;  // of all layers, (layers, ranks)
    const auto append = [](std::vector<double>& to, const std::vector<double>& more) {
      to.insert(to.end(), more.begin(), more.end());
    };
    for (size_t i = 0; i < samples.size(); ++i) {
      const placement::LayerProblem layer = placement::layer_problem(problem, workload, i);
      LayerPrediction one = placement::predict(layer, placement.layers[i], samples[i]);
      append(load, placement::rank_tokens(layer, placement.layers[i]));
      append(single_load,
             placement::rank_tokens(layer, placement::without_twins(layer, placement.layers[i])));
      out.value += placement::value_of(out.objective, layer, placement.layers[i], samples[i]);
      out.us += one.us();
      for (int link = 1; link < kLinkClasses; ++link)
        out.cross_bytes[link] +=
            one.rows[link] * tokens * (workload.dispatch_bytes + workload.combine_bytes);
      out.layers.push_back(std::move(one));
    }
    out.value /= static_cast<double>(samples.size());
    out.balancedness = balancedness_vllm(load, problem.cluster.ranks());
    out.utilisation = balancedness_sglang(load, problem.cluster.ranks());
    if (out.objective == Objective::tokens) {
      const double even = balancedness_vllm(single_load, problem.cluster.ranks());
      out.value = even > 0 ? 1 / even : 1;
    }
    return out;
  });
}

}  // namespace moe
