// Which rank holds which expert. Strategies are pure functions from usage and cluster to a
// placement; evaluate() predicts what the runtime would do with it. Host code, usable alone.
// Everything is deterministic: equal input gives equal output, and ties go to the lower index.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/export.h"
#include "moe/status.h"
#include "moe/usage.h"

namespace moe {

// The roofline of one device.
struct DeviceRates {
  double flops_per_second = 1979e12;  // of dense matrix products
  double bytes_per_second = 4.8e12;   // of its memory
};
// Of "h200", "h100", "b200", "a100", "rtx4090", "cpu", or not_found with the list.
MOE_API Result<DeviceRates> device_rates(std::string_view name);

// One rank's way to a group of others.
struct Link {
  double bytes_per_second = 0;  // 0: the link is never the bottleneck
  double seconds = 0;           // of the first byte
};

// What a row crosses on its way to another rank.
enum class LinkClass : int32_t { self, node, rack, cross_rack };
inline constexpr int kLinkClasses = 4;          // of LinkClass
MOE_API const char* to_string(LinkClass link);  // "rack"

// Ranks and what connects them. Rank r owns the slots from the sum of its predecessors' on.
struct MOE_API Cluster {
  std::vector<int32_t> slots;         // (ranks): expert slots per layer; may be unequal
  std::vector<int32_t> node_of_rank;  // (ranks), ascending from 0; empty: one node
  std::vector<int32_t> rack_of_node;  // (nodes), ascending from 0; empty: one rack

  Link node_link = {450e9, 2e-6};  // NVLink
  Link rack_link = {50e9, 5e-6};   // 400 Gb/s a rank
  Link cross_link = {5e9, 30e-6};  // 40 Gb/s

  // (ranks, ranks), row-major: used instead of the classes' speeds. Empty: none.
  std::vector<double> seconds_per_byte;

  DeviceRates device;  // of every rank

  // `ranks` with equal numbers of slots on equal nodes.
  static Result<Cluster> uniform(int32_t ranks, int32_t slots_per_rank, int32_t nodes = 1);
  // `ranks` with just enough slots for one copy of each expert: sizes differ by at most 1.
  static Result<Cluster> exact(int32_t ranks, int32_t experts, int32_t nodes = 1);

  int32_t ranks() const { return static_cast<int32_t>(slots.size()); }  // at least 1 if valid
  // Nodes that the ranks are on.
  int32_t nodes() const { return node_of_rank.empty() ? 1 : node_of_rank.back() + 1; }
  int64_t total_slots() const;  // of one layer, over all ranks
  // The node that `rank` is on.
  int32_t node(int32_t rank) const { return node_of_rank.empty() ? 0 : node_of_rank[rank]; }
  LinkClass link(int32_t from, int32_t to) const;       // between two ranks
  double byte_seconds(int32_t from, int32_t to) const;  // 0 from a rank to itself
  std::vector<int32_t> rank_of_slot() const;            // (total_slots)
};
// ok, or invalid_argument naming the field and the rank.
MOE_API Status validate(const Cluster& cluster);

// Sets links from JSON: "node", "rack", "cross_rack" {"bytes_per_second", "seconds"},
// "rack_of_node" [...], "seconds_per_byte" [[...]] of (ranks, ranks); all optional. Or that matrix
// alone. On failure `cluster` is as before.
MOE_API Status parse_links(std::string_view text, std::string_view name, Cluster& cluster);

// One layer: (total_slots), -1 in a slot that stays empty.
struct LayerPlacement {
  int32_t layer = -1;  // the checkpoint's own index
  std::vector<int32_t>
      expert_of_slot;  // (slots over all ranks): logical expert, -1 where a slot is empty
};

// Which slot holds which expert, in every layer.
struct Placement {
  std::vector<LayerPlacement> layers;  // in the order of the usage trace
};

// Every expert has a slot, every slot a valid expert or -1, and no rank holds an expert twice
// (`allow_twins` permits that: published EPLB does it).
MOE_API Status validate(const Placement& placement, const Cluster& cluster, const UsageTrace& usage,
                        bool allow_twins = false);

// {"layers": [{"layer": 3, "expert_of_slot": [...]}]}. Reads what `moe plan --json` prints, too:
// the plan "auto", else the first. `name` is for messages.
MOE_API Result<Placement> parse_placement(std::string_view text, std::string_view name = {});
// What parse_placement() reads back equal.
MOE_API std::string write_placement(const Placement& placement);

// (experts): the local index of each expert on `rank`, or -1.
MOE_API Result<std::vector<int32_t>> expert_map(const LayerPlacement& placement,
                                                const Cluster& cluster, int32_t experts,
                                                int32_t rank);

// What is to be small. All of them are at least the ideal, lower is better:
//   tokens   busiest rank's tokens over the mean's (summed over layers): 1 / balancedness
//   active   distinct experts that the busiest rank must read in one step, mean over layers
//   traffic  rows that a token sends over links, each weighed by its link's cost over that of the
//            costliest, times the imbalance of the ranks' tokens: the busiest rank's share
// Of an expert's copies on one rank only the first counts.
enum class Objective : int32_t { automatic, tokens, active, traffic };
MOE_API const char* to_string(Objective objective);  // "traffic"

// What a step does. The defaults are DeepSeek-R1's experts in FP8.
struct Workload {
  int64_t tokens_per_step = 0;   // of all ranks together; 0: so many that compute is the limit
  int32_t top_k = 0;             // 0: the usage's, else 8
  int32_t groups = 1;            // of experts; > 1: tokens choose groups first
  int32_t groups_per_token = 0;  // 0: half of them

  double expert_bytes = 44040192;   // of one expert in its slot
  double flops_per_row = 88080384;  // of one expert, for one token
  double dispatch_bytes = 7168;     // a row on its way to a rank
  double combine_bytes = 14336;     // and back
};

// What a strategy is given. The references must outlive it.
struct PlacementProblem {
  const UsageTrace& usage;                     // borrowed while a strategy runs
  const Cluster& cluster;                      // borrowed while a strategy runs
  Workload workload = {};                      // of one step
  Objective objective = Objective::automatic;  // what to make small
  // What is in place now. Strategies that can, move little away from it.
  const Placement* previous = nullptr;
};

// ---- strategies, one file each

// A pure function from usage and cluster to a placement.
using Strategy = Result<Placement> (*)(const PlacementProblem& problem);

// Experts in order, contiguous; more slots than experts begin again at expert 0.
MOE_API Result<Placement> place_linear(const PlacementProblem& problem);

// Expert e on rank e mod ranks. failed_precondition if that rank has no slot left: never a silent
// change of rule.
MOE_API Result<Placement> place_round_robin(const PlacementProblem& problem);

// DeepSeek's EPLB as published (eplb.py @d52c72d), faults included: hierarchical if the workload's
// groups divide evenly among the nodes, else global. Needs equal ranks and nodes.
MOE_API Result<Placement> place_eplb(const PlacementProblem& problem);
// The global half of it, whatever the groups are.
MOE_API Result<Placement> place_eplb_global(const PlacementProblem& problem);

// SGLang's deepseek_vec: EPLB on the load of each step (LayerUsage::steps) rather than on their
// sum.
MOE_API Result<Placement> place_eplb_steps(const PlacementProblem& problem);

// Fewest tokens on the busiest rank: EPLB's greedy replicas and packing without its divisibility
// rules, then swaps and new replicas. With `previous`: the fewest moves that reach the same
// balance.
MOE_API Result<Placement> place_balanced(const PlacementProblem& problem);

// Fewest distinct active experts on the busiest rank (Marchal; METRO): greedy copies, then swaps.
MOE_API Result<Placement> place_subset(const PlacementProblem& problem);

// The same, proved optimal by branch and bound. resource_exhausted if the proof is out of reach.
MOE_API Result<Placement> place_subset_exact(const PlacementProblem& problem);

// Fewest rows across nodes (across ranks, if there is one node) while the balance stays close to
// the best.
MOE_API Result<Placement> place_traffic(const PlacementProblem& problem);

// The default. Chooses the objective that limits the layer on this hardware (or takes the
// problem's), and returns for each layer the best of what the strategies for it find: on the
// objective never worse than any of them, and never with an expert twice on a rank. (Up to 4,096
// slots over all layers every strategy but the exact one is asked, beyond that "traffic" and
// "subset" only for their own objective.) With `previous`: of those that are as good as all these,
// the one that moves the fewest copies.
MOE_API Result<Placement> place_auto(const PlacementProblem& problem);

// A row of the table of strategies.
struct StrategyRow {
  const char* name;         // "linear", "round-robin", "eplb", ...
  const char* description;  // one line for people
  Strategy place;           // the strategy itself
};
// Every strategy of this library.
MOE_API std::span<const StrategyRow> strategies();
// The strategy of that name, or not_found with the list.
MOE_API Result<Strategy> find_strategy(std::string_view name);

// vLLM's post-pass: the same experts on every rank, but whoever stays keeps its slot.
MOE_API Result<Placement> preserve_slots(const Placement& previous, const Placement& next,
                                         const Cluster& cluster);

// What the proof search found in one layer.
struct ExactLayer {
  LayerPlacement placement;  // the best one found
  double cost = 0;           // expected time in experts, the mean over the sets
  double lower_bound = 0;    // of any placement
  int64_t nodes = 0;         // visited
  bool proved = false;       // cost == lower_bound
};
// place_subset_exact() on one layer; an unproved answer after `max_nodes` is still the best found.
MOE_API Result<ExactLayer> solve_subset_exact(const LayerUsage& usage, const Cluster& cluster,
                                              int64_t max_nodes = 20'000'000);

// Expected time of one token in experts: over the layer's sets, the mean of the fewest experts that
// the busiest rank executes when each expert of the set is served by its best copy.
MOE_API Result<double> expected_set_time(const LayerUsage& usage, const Cluster& cluster,
                                         const LayerPlacement& placement);

// ---- prediction

// Of one layer and one step. Rows are counted as an all-to-all that sends a token once to every
// node it needs and, there, once to every rank; ReplicaChoice::nearest serves them.
struct LayerPrediction {
  int32_t layer = -1;              // the checkpoint's own index
  std::vector<double> rank_share;  // (ranks): of the layer's tokens; copies share evenly
  double active = 0;               // distinct experts that the busiest rank reads
  double rows[kLinkClasses] = {};  // a token's rows by the class of link they cross
  double compute_us = 0;           // of the busiest rank: max(bytes / BW, flops / F)
  double transfer_us = 0;          // dispatch and combine, of the busiest rank
  double us() const { return compute_us + transfer_us; }  // of the layer
};

// Of one step through all layers.
struct Prediction {
  Objective objective = Objective::tokens;  // never automatic
  double value = 0;                         // of the objective
  double balancedness = 0;                  // vLLM: sum of means over sum of maxima
  double utilisation = 0;                   // SGLang: mean of mean / max
  double us = 0;                            // all layers
  double cross_bytes[kLinkClasses] = {};    // of a step, all layers, both ways
  std::vector<LayerPrediction> layers;      // in the order of the placement
};

// The placement may be anybody's; it is validated first (twins allowed).
MOE_API Result<Prediction> evaluate(const PlacementProblem& problem, const Placement& placement);

// The objective that limits the layer time: bytes of distinct active experts, rows' arithmetic, or
// links. What place_auto() follows.
MOE_API Result<Objective> limiting_objective(const PlacementProblem& problem);

}  // namespace moe
