// moe plan: usage in, placement and prediction out.
#include "plan.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>

#include "commands.h"
#include "core/file.h"
#include "terminal.h"

namespace moe::cli {
namespace {

struct PlanOptions {
  std::string usage, previous, links, picture, device = "h200", objective = "auto";
  std::vector<std::string> strategies;
  std::vector<int32_t> slots;
  int32_t ranks = 0, nodes = 1, groups = 1, top_k = 0;
  int64_t tokens_per_step = 0, hidden = 7168, intermediate = 2048;
  int32_t weight_bits = 8;
  double coverage = 1;
};

Objective parse_objective(const std::string& name) {
  for (Objective o :
       {Objective::automatic, Objective::tokens, Objective::active, Objective::traffic})
    if (name == to_string(o)) return o;
  wrong_usage("--objective: \"" + name + "\" is not one of auto, tokens, active, traffic");
}

Workload workload_of(const PlanOptions& o) {
  Workload w;
  w.tokens_per_step = o.tokens_per_step;
  w.top_k = o.top_k;
  w.groups = o.groups;
  const double weights = 3.0 * static_cast<double>(o.hidden) * static_cast<double>(o.intermediate);
  w.expert_bytes = weights * o.weight_bits / 8;
  w.flops_per_row = 2 * weights;
  w.dispatch_bytes = static_cast<double>(o.hidden) * std::min(o.weight_bits, 16) / 8;
  w.combine_bytes = static_cast<double>(o.hidden) * 2;
  return w;
}

Result<Cluster> cluster_of(const PlanOptions& o, const UsageTrace& usage) {
  int32_t experts = 0;
  for (const LayerUsage& layer : usage.layers) experts = std::max(experts, layer.experts());
  if (o.slots.size() > 1 && o.slots.size() != static_cast<size_t>(o.ranks))
    wrong_usage("--slots: one number, or one for each rank");
  Result<Cluster> cluster = o.slots.empty() ? Cluster::exact(o.ranks, experts, o.nodes)
                                            : Cluster::uniform(o.ranks, o.slots[0], o.nodes);
  if (!cluster.ok()) return cluster;
  if (o.slots.size() > 1) cluster->slots = o.slots;
  const Result<DeviceRates> device = device_rates(o.device);
  if (!device.ok()) return device.status();
  cluster->device = *device;
  if (o.links.empty()) return cluster;
  const Result<std::string> text = read_text_file(o.links);
  if (!text.ok()) return text.status();
  if (Status status = parse_links(*text, o.links, *cluster); !status.ok()) return status;
  return cluster;
}

// "auto" last, whether asked for or not.
std::vector<std::string> strategy_names(const PlanOptions& o) {
  std::vector<std::string> names = o.strategies;
  std::erase(names, "auto");
  names.push_back("auto");
  return names;
}

// Those that do not apply to this cluster go to `refused`; "auto" always does.
Status add_plans(const PlanOptions& o, const PlacementProblem& problem, PlanReport& report) {
  for (const std::string& name : strategy_names(o)) {
    const Result<Strategy> strategy = find_strategy(name);
    if (!strategy.ok()) wrong_usage("--strategy: " + std::string(strategy.status().message()));
    Result<Placement> placement = (*strategy)(problem);
    if (!placement.ok() && name != "auto") {
      report.refused.push_back({name, describe(placement.status())});
      continue;
    }
    if (!placement.ok()) return placement.status();
    Result<Prediction> prediction = evaluate(problem, *placement);
    if (!prediction.ok()) return prediction.status();
    report.objective = prediction->objective;
    report.plans.push_back({name, *std::move(placement), *std::move(prediction)});
  }
  for (const Refusal& refusal : report.refused)
    print_note(refusal.strategy + " does not apply: " + refusal.reason);
  return {};
}

Status add_migration(const PlacementProblem& problem, PlanReport& report) {
  Plan& plan = report.plans.back();
  Result<Placement> kept = preserve_slots(*problem.previous, plan.placement, problem.cluster);
  if (!kept.ok()) return kept.status();
  plan.placement = *std::move(kept);
  Result<std::vector<Transfer>> transfers =
      plan_transfers(*problem.previous, plan.placement, problem.cluster);
  if (!transfers.ok()) return transfers.status();
  const Result<Prediction> before = evaluate(problem, *problem.previous);
  if (!before.ok()) return before.status();
  report.migrates = true;
  report.balancedness_before = before->balancedness;
  report.transfers = *std::move(transfers);
  return {};
}

Status write_picture(const PlanOptions& o, const PlacementProblem& problem,
                     const PlanReport& report) {
  Result<Placement> before =
      problem.previous ? Result<Placement>(*problem.previous) : place_linear(problem);
  if (!before.ok()) return before.status();
  const Result<Prediction> prediction = evaluate(problem, *before);
  if (!prediction.ok()) return prediction.status();
  std::ofstream file(o.picture, std::ios::binary);
  if (!(file << plan_picture(report, *prediction)) || !file.flush())
    return Status(StatusCode::permission_denied, "cannot be written", {.file = o.picture});
  print_note("picture: " + o.picture);
  return {};
}

Status plan(const PlanOptions& o, bool json) {
  const Objective objective = parse_objective(o.objective);
  const Result<UsageTrace> usage = read_usage(o.usage, {.coverage = o.coverage});
  if (!usage.ok()) return usage.status();
  const Result<Cluster> cluster = cluster_of(o, *usage);
  if (!cluster.ok()) return cluster.status();
  Placement previous;
  PlacementProblem problem{*usage, *cluster, workload_of(o), objective};
  if (!o.previous.empty()) {
    const Result<std::string> text = read_text_file(o.previous);
    if (!text.ok()) return text.status();
    Result<Placement> parsed = parse_placement(*text, o.previous);
    if (!parsed.ok()) return parsed.status();
    previous = *std::move(parsed);
    problem.previous = &previous;
  }
  PlanReport report{*usage, *cluster, objective};
  report.expert_bytes = problem.workload.expert_bytes;
  if (Status status = add_plans(o, problem, report); !status.ok()) return status;
  if (problem.previous)
    if (Status status = add_migration(problem, report); !status.ok()) return status;
  if (!o.picture.empty())
    if (Status status = write_picture(o, problem, report); !status.ok()) return status;
  json ? print_plan_json(report) : print_plan_text(report);
  return {};
}

}  // namespace

const Plan& PlanReport::chosen() const { return plans.back(); }

void add_plan(CLI::App& app, Global& global) {
  CLI::App* command = app.add_subcommand("plan", "Where experts should be, and what that would do");
  auto o = std::make_shared<PlanOptions>();
  command->add_option("--usage", o->usage, "Usage: SGLang JSON, CSV, JSON lines, or our own")
      ->required();
  command->add_option("--ranks", o->ranks, "Ranks")->required()->check(CLI::Range(1, 65536));
  command->add_option("--nodes", o->nodes, "Nodes, equally large")->check(CLI::Range(1, 65536));
  command
      ->add_option("--slots", o->slots,
                   "Slots per rank and layer, or a list such as 4,6 [one copy of each expert]")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  command->add_option("--groups", o->groups, "Groups of experts that tokens choose first")
      ->check(CLI::PositiveNumber);
  command->add_option("--strategy", o->strategies, "Also this one; may be repeated [auto]");
  command->add_option("--objective", o->objective, "tokens, active, traffic or auto");
  command->add_option("--tokens-per-step", o->tokens_per_step, "Of all ranks together [very many]")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--top-k", o->top_k, "Experts per token [the file's, else 8]")
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--coverage", o->coverage,
                   "Plan with the most frequent sets that hold this share of all [1]")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--device", o->device, "h200, h100, b200, a100, rtx4090 or cpu");
  command->add_option("--links", o->links, "JSON with speeds of links");
  command->add_option("--previous", o->previous, "What is in place now; adds the moves");
  command->add_option("--hidden", o->hidden, "Row size [7168]")->check(CLI::PositiveNumber);
  command->add_option("--intermediate", o->intermediate, "Of one expert [2048]")
      ->check(CLI::PositiveNumber);
  command->add_option("--weight-bits", o->weight_bits, "Per weight [8]")->check(CLI::Range(2, 32));
  command->add_option("--picture", o->picture, "Writes an HTML page of the load before and after");
  add_json(*command, global);
  command->callback([o, &global] { global.status = plan(*o, global.json); });
}

}  // namespace moe::cli
