#include <fmt/ranges.h>

#include "core/error.h"
#include "moe/placement.h"

namespace moe {
namespace {
constexpr StrategyRow kStrategies[] = {
    {"linear", "experts in order, contiguous", place_linear},
    {"round-robin", "expert e on rank e mod ranks", place_round_robin},
    {"eplb", "DeepSeek's EPLB as published", place_eplb},
    {"eplb-global", "EPLB without groups and nodes", place_eplb_global},
    {"eplb-steps", "SGLang's EPLB on the load of each step", place_eplb_steps},
    {"balanced", "fewest tokens on the busiest rank", place_balanced},
    {"subset", "fewest active experts on the busiest rank", place_subset},
    {"subset-exact", "the same with a proof; small layers", place_subset_exact},
    {"traffic", "fewest rows across nodes at nearly the best balance", place_traffic},
    {"auto", "the best for what limits the layer on this hardware", place_auto},
};
}  // namespace

std::span<const StrategyRow> strategies() { return kStrategies; }

Result<Strategy> find_strategy(std::string_view name) {
  std::vector<std::string_view> names;
  for (const StrategyRow& row : kStrategies) {
    if (name == row.name) return row.place;
    names.push_back(row.name);
  }
  return error(StatusCode::not_found, {.phase = Phase::plan}, "unknown strategy \"{}\"; known: {}",
               name, fmt::join(names, ", "));
}

}  // namespace moe
