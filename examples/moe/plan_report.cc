#include <fmt/format.h>

#include "json.h"
#include "plan.h"
#include "terminal.h"

namespace moe::cli {
namespace {

double moved_bytes(const PlanReport& report) {
  return static_cast<double>(moved_copies(report.transfers)) * report.expert_bytes;
}

void write_layers(const Plan& plan, Json& json) {
  json.array("layers");
  for (size_t l = 0; l < plan.placement.layers.size(); ++l) {
    const LayerPrediction& prediction = plan.prediction.layers[l];
    json.object().value("layer", plan.placement.layers[l].layer).array("expert_of_slot");
    for (int32_t expert : plan.placement.layers[l].expert_of_slot) json.element(expert);
    json.end();
    json.value("active", prediction.active).value("predicted_us", prediction.us()).end();
  }
  json.end();
}

void write_migration(const PlanReport& report, Json& json) {
  json.object("migration")
      .value("balancedness_before", report.balancedness_before)
      .value("moved_copies", moved_copies(report.transfers))
      .value("moved_bytes", moved_bytes(report))
      .array("transfers");
  for (const Transfer& t : report.transfers)
    json.object()
        .value("layer", t.layer)
        .value("expert", t.expert)
        .value("from_rank", t.from_rank)
        .value("from_slot", t.from_slot)
        .value("to_rank", t.to_rank)
        .value("to_slot", t.to_slot)
        .end();
  json.end().end();
}

}  // namespace

void print_plan_json(const PlanReport& report) {
  Json json;
  json.value("objective", to_string(report.objective)).array("plans");
  for (const Plan& plan : report.plans) {
    json.object()
        .value("strategy", plan.strategy)
        .value("balancedness", plan.prediction.balancedness)
        .value("utilisation", plan.prediction.utilisation)
        .value("objective", plan.prediction.value)
        .value("predicted_us", plan.prediction.us)
        .object("bytes_per_step");
    for (int link = 1; link < kLinkClasses; ++link)
      json.value(to_string(static_cast<LinkClass>(link)), plan.prediction.cross_bytes[link]);
    json.end();
    write_layers(plan, json);
    json.end();
  }
  json.end().array("refused");
  for (const Refusal& refusal : report.refused)
    json.object().value("strategy", refusal.strategy).value("reason", refusal.reason).end();
  json.end();
  if (report.migrates) write_migration(report, json);
  json.print();
}

void print_plan_text(const PlanReport& report) {
  fmt::print("{} layers, {} ranks, {} nodes, {} slots per layer; objective: {}\n\n",
             report.usage.layers.size(), report.cluster.ranks(), report.cluster.nodes(),
             report.cluster.total_slots(), to_string(report.objective));
  fmt::print("{:<14}{:>14}{:>12}{:>14}{:>16}\n", "strategy", "balancedness",
             to_string(report.objective), "predicted us", "slow-link bytes");
  for (const Plan& plan : report.plans) {
    const Prediction& p = plan.prediction;
    fmt::print("{:<14}{:>14.4f}{:>12.4f}{:>14.1f}{:>16}\n", plan.strategy, p.balancedness, p.value,
               p.us, human_bytes(p.cross_bytes[2] + p.cross_bytes[3]));
  }
  if (report.migrates)
    fmt::print("\nfrom balancedness {:.4f}: {} copies move, {}\n", report.balancedness_before,
               moved_copies(report.transfers), human_bytes(moved_bytes(report)));
  fmt::print("\nplacement (auto), experts by rank, first layer:\n");
  const LayerPlacement& layer = report.chosen().placement.layers.front();
  size_t slot = 0;
  for (int32_t rank = 0; rank < report.cluster.ranks(); ++rank) {
    fmt::print("{:>5}:", rank);
    for (int32_t i = 0; i < report.cluster.slots[rank]; ++i) {
      const int32_t expert = layer.expert_of_slot[slot++];
      expert < 0 ? fmt::print("  -") : fmt::print(" {}", expert);
    }
    fmt::print("\n");
  }
  fmt::print("all layers: --json\n");
}

}  // namespace moe::cli
