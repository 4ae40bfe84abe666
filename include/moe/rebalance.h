// When to move experts, which, and how: everything is pure and deterministic, so that every rank
// that sees the same numbers decides the same without asking.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "moe/export.h"
#include "moe/placement.h"
#include "moe/status.h"
#include "moe/usage.h"

namespace moe {

// One copy of an expert on its way. from_rank == to_rank is a copy inside a rank.
struct Transfer {
  int32_t layer = -1;      // LayerPlacement::layer
  int32_t expert = -1;     // logical index
  int32_t from_rank = -1;  // who sends
  int32_t from_slot = -1;  // slots count through the layer, over all ranks
  int32_t to_rank = -1;    // who receives
  int32_t to_slot = -1;    // ditto

  friend bool operator==(const Transfer&, const Transfer&) = default;
};

// Filling every slot of `next` that does not hold its expert in `previous` yet. A rank receives an
// expert once and copies further slots from itself; owners share the sending evenly (vLLM's rule).
// Sources are slots of `previous`: stage before you overwrite. Ordered by layer, then slot.
MOE_API Result<std::vector<Transfer>> plan_transfers(const Placement& previous,
                                                     const Placement& next, const Cluster& cluster);

// How many of them cross ranks: what a move costs.
MOE_API int64_t moved_copies(std::span<const Transfer> transfers);

// Cuts a plan into steps of whole layers, at most `bytes_per_step` received by all ranks together
// (a layer larger than that is a step of its own). Returns the end of each step.
MOE_API std::vector<size_t> transfer_steps(std::span<const Transfer> transfers, double expert_bytes,
                                           double bytes_per_step);

// When a move is worth it.
struct RebalanceOptions {
  int32_t interval = 3000;              // steps between two looks; the first comes after a quarter
  double min_balancedness = 0.9;        // not worse than this: stay, if tokens are what limits
  double hysteresis = 0.02;             // a move must gain at least: balancedness if tokens are
                                        // what limits, else that share of the objective
  double max_bytes = 0;                 // of one move; 0: no limit. Worst layers first
  double move_bytes_per_second = 50e9;  // of one rank's link
  double min_tokens = 16;               // per expert and layer, before anything is called imbalance
};

// Whether to move, what, and why.
struct RebalanceDecision {
  bool move = false;                // whether it pays
  std::string reason;               // of moving, or of staying
  Placement placement;              // what to reach; the old one if nothing moves
  std::vector<Transfer> transfers;  // how to get there
  double balancedness_before = 0;   // of what is in place, on the loads that were looked at
  double balancedness_after = 0;    // of `placement`, on the same loads
  double gain_us = 0;               // over the interval that follows
  double cost_us = 0;               // of the transfers
};

// Compares what is in place with the best that is worth its moves. `problem.previous` is required.
MOE_API Result<RebalanceDecision> decide_rebalance(const PlacementProblem& problem,
                                                   const RebalanceOptions& options = {});

// Counts steps: true when it is time to look. Starts three quarters through its first interval.
class MOE_API RebalanceTimer {
 public:
  // `interval` in steps.
  explicit RebalanceTimer(int32_t interval) : interval_(interval), step_(interval - interval / 4) {}
  bool tick();  // once per step

 private:
  int32_t interval_, step_;
};

// ---- replicas that come and go with the load

// When copies come and go.
struct ReplicationOptions {
  double add_above = 0.8;     // utilisation of an expert's copies, their mean
  double remove_below = 0.3;  // share of a full replica's load below which one goes
  int32_t min_replicas = 1;   // of one expert
  int32_t max_replicas = 8;   // of one expert
  int32_t hold = 3;           // windows in a row that must agree; and that pass between two changes
};

// One copy more or less.
struct ReplicaChange {
  int32_t expert = -1;  // logical index
  int32_t change = 0;   // +1 or -1
  friend bool operator==(const ReplicaChange&, const ReplicaChange&) = default;
};

// Decides per expert. Never removes a copy if the rest would then be above add_above.
class MOE_API ReplicationController {
 public:
  // Every expert begins with min_replicas. invalid_argument names the option that is out of range.
  static Result<ReplicationController> create(int32_t experts,
                                              const ReplicationOptions& options = {});
  // One window: `load` (experts) in units of what one copy can serve. Returns the changes, in
  // order of experts; replicas() has them already.
  Result<std::vector<ReplicaChange>> observe(std::span<const double> load);
  // (experts): copies of each now.
  const std::vector<int32_t>& replicas() const noexcept { return replicas_; }

 private:
  ReplicationController(int32_t experts, const ReplicationOptions& options);
  ReplicationOptions options_;
  std::vector<int32_t> replicas_, above_, below_, quiet_;
};

// Primary copies serve alone until the load is high; then the replicas of the popular experts do.
class MOE_API OverloadGate {
 public:
  // Opens when utilisation exceeds `open_above`, closes when it falls below `close_below`.
  OverloadGate(double open_above = 0.8, double close_below = 0.6)
      : open_above_(open_above), close_below_(close_below) {}
  // True while replicas are to be used.
  bool observe(double utilisation);
  bool open() const noexcept { return open_; }  // as observe() last said

 private:
  double open_above_, close_below_;
  bool open_ = false;
};

// A placement with the primary copies only: the first slot of each expert; others become -1.
MOE_API Result<Placement> primaries(const Placement& placement, const Cluster& cluster);

// ---- for autoscalers

// When ranks come and go.
struct ScalingOptions {
  double add_above = 0.7;     // utilisation of the ranks
  double remove_below = 0.3;  // ditto; between the two nothing is advised
  int32_t min_ranks = 1;      // that the host keeps in any case
  int32_t max_ranks = 0;      // that the host can offer; 0: no limit
};

// How many ranks should serve, and what each then holds.
struct ScalingAdvice {
  int32_t ranks = 0;                 // that should serve
  int32_t slots_per_rank = 0;        // on each, per layer
  double expert_bytes_per_rank = 0;  // memory for them, all layers
  double us_now = 0;                 // predicted time of a step as things are
  double us_then = 0;                // and with the advice followed
  std::string reason;                // for people
};

// `utilisation` is the busy share of the ranks, in [0, ...): measured, or demand over capacity.
MOE_API Result<ScalingAdvice> scaling_advice(const PlacementProblem& problem, double utilisation,
                                             const ScalingOptions& options = {});

}  // namespace moe
