// What `moe plan` has computed, for its three ways to tell it.
#pragma once

#include <string>
#include <vector>

#include "moe/placement.h"
#include "moe/rebalance.h"

namespace moe::cli {

struct Plan {
  std::string strategy;
  Placement placement;
  Prediction prediction;
};

// A strategy that was asked for and does not apply.
struct Refusal {
  std::string strategy;
  std::string reason;
};

struct PlanReport {
  const UsageTrace& usage;
  const Cluster& cluster;
  Objective objective;
  std::vector<Plan> plans;  // "auto" last
  std::vector<Refusal> refused;

  // With --previous: how to get to the plan "auto".
  bool migrates = false;
  double balancedness_before = 0;
  std::vector<Transfer> transfers;
  double expert_bytes = 0;

  const Plan& chosen() const;  // "auto"
};

void print_plan_json(const PlanReport& report);
void print_plan_text(const PlanReport& report);

// One self-contained page: load of every rank and layer, before (linear) and after (chosen).
std::string plan_picture(const PlanReport& report, const Prediction& before);

}  // namespace moe::cli
