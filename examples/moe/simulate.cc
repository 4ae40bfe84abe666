// moe simulate: what a pool of expert slots would hit and miss on a recorded routing trace.
#include "moe/simulate.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "commands.h"
#include "json.h"
#include "names.h"
#include "terminal.h"

namespace moe::cli {
namespace {

struct SimulateOptions {
  std::string trace;
  std::vector<int64_t> slots;
  std::vector<std::string> policies;
};

std::vector<std::string> known_policies() {
  std::vector<std::string> names;
  for (const EvictionPolicyRow& row : eviction_policy_rows()) names.push_back(row.name);
  names.insert(names.end(), {"belady", "belady-per-layer"});
  return names;
}

bool per_layer(const std::string& policy) { return policy.ends_with("-per-layer"); }

// Those that were asked for, or all; the optimum, and that of equal shares if one has these, last.
std::vector<std::string> chosen_policies(const SimulateOptions& options) {
  const std::vector<std::string> known = known_policies();
  std::vector<std::string> chosen = options.policies.empty() ? known : options.policies;
  for (const std::string& name : chosen) {
    if (std::find(known.begin(), known.end(), name) == known.end())
      wrong_usage("--policy: no policy is called '" + name + "'." + did_you_mean(name, known));
  }
  const bool shares = std::any_of(chosen.begin(), chosen.end(), per_layer);
  std::erase_if(chosen, [](const std::string& name) { return name.rfind("belady", 0) == 0; });
  chosen.push_back("belady");
  if (shares) chosen.push_back("belady-per-layer");
  return chosen;
}

void print_json(const SimulateOptions& options, const RoutingTrace& trace,
                const std::vector<PagingResult>& results) {
  Json json;
  json.value("trace", options.trace);
  json.value("rows", trace.rows.size()).value("layers", trace.layers.size());
  json.array("results");
  for (const PagingResult& result : results) {
    json.object().value("policy", result.policy).value("slots", result.slots);
    json.value("hits", result.hits).value("misses", result.misses);
    json.value("hit_rate", result.hit_rate()).end();
  }
  json.print();
}

// The misses of `policy` at `slots`.
int64_t misses_of(const std::vector<PagingResult>& results, std::string_view policy,
                  int64_t slots) {
  for (const PagingResult& result : results)
    if (result.policy == policy && result.slots == slots) return result.misses;
  return 0;
}

void print_text(const RoutingTrace& trace, const std::vector<PagingResult>& results) {
  int64_t experts = 0;
  for (const LayerExperts& layer : trace.layers) experts += layer.experts;
  fmt::print("{} rows, {} layers, {} experts, top {}\n\n", trace.rows.size(), trace.layers.size(),
             experts, trace.top_k);
  fmt::print("{:<18}{:>8}{:>12}{:>12}{:>10}{:>20}\n", "policy", "slots", "hits", "misses",
             "hit rate", "misses / optimum");
  for (const PagingResult& result : results) {
    const int64_t optimum = misses_of(results, "belady", result.slots);
    const double factor = static_cast<double>(result.misses) / static_cast<double>(optimum);
    fmt::print("{:<18}{:>8}{:>12}{:>12}{:>10.6f}{:>20.3f}\n", result.policy, result.slots,
               result.hits, result.misses, result.hit_rate(), factor);
  }
}

Status run(const SimulateOptions& options, bool json) {
  for (const int64_t slots : options.slots)
    if (slots < 1) wrong_usage(fmt::format("--slots is {}; wanted 1 or more", slots));
  const std::vector<std::string> policies = chosen_policies(options);
  const Result<RoutingTrace> trace = read_trace(options.trace);
  if (!trace.ok()) return trace.status();
  std::vector<PagingResult> results;
  for (const int64_t slots : options.slots) {
    for (const std::string& policy : policies) {
      Result<PagingResult> result = simulate(*trace, policy, slots);
      if (!result.ok()) return result.status();
      results.push_back(std::move(*result));
    }
  }
  json ? print_json(options, *trace, results) : print_text(*trace, results);
  return {};
}

}  // namespace

void add_simulate(CLI::App& app, Global& global) {
  CLI::App* command = app.add_subcommand(
      "simulate", "Replay a routing trace: what eviction policies would hit and miss");
  auto options = std::make_shared<SimulateOptions>();
  command
      ->add_option("--trace", options->trace,
                   "CSV, also packed by gzip: seq,step,token_pos,layer,e0,e1,...")
      ->required();
  command->add_option("--slots", options->slots, "Expert slots over all layers, spares excluded")
      ->delimiter(',')
      ->required();
  command->add_option("--policy", options->policies, "Repeatable; default: all");
  add_json(*command, global);
  std::string policies;
  for (const EvictionPolicyRow& row : eviction_policy_rows())
    policies += fmt::format("  {:<18}{}\n", row.name, row.description);
  command->footer("Policies:\n" + policies +
                  "  belady            the optimum, which knows the future; always beside\n"
                  "  belady-per-layer  the optimum for equal shares; beside any such policy\n"
                  "`pin` gets the counts of the trace itself.\n"
                  "Example: moe simulate --trace routing.csv --slots 192 --policy lru");
  command->callback([options, &global] { global.status = run(*options, global.json); });
}

}  // namespace moe::cli
