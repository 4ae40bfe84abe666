#include <string>

#include "core/json.h"
#include "placement/layer.h"

namespace moe {
namespace {

Result<std::vector<int32_t>> integers(const Json& array) {
  std::vector<int32_t> out;
  for (const Json& item : array.items()) {
    const std::optional<int64_t> value = item.integer();
    if (!value || *value < -1 || *value > INT32_MAX)
      return invalid_argument({}, "wanted an array of integers from -1 on, got {} in it",
                              to_string(item.kind()));
    out.push_back(static_cast<int32_t>(*value));
  }
  return out;
}

// The plan called "auto", else the first; a document without plans is one itself.
const Json& chosen_plan(const Json& json) {
  const Json* plans = json.find("plans");
  if (!plans || plans->items().empty()) return json;
  for (const Json& plan : plans->items())
    if (const Json* name = plan.find("strategy"); name && name->string() == "auto") return plan;
  return plans->items().front();
}

Status read_link(const Json& json, const char* key, Link& link) {
  const Json* entry = json.find(key);
  if (!entry) return {};
  MOE_ASSIGN_OR_RETURN(link.bytes_per_second,
                       entry->number("bytes_per_second", link.bytes_per_second));
  MOE_ASSIGN_OR_RETURN(link.seconds, entry->number("seconds", link.seconds));
  return {};
}

// (ranks, ranks)
Status read_matrix(const Json& rows, Cluster& cluster) {
  const size_t ranks = cluster.slots.size();
  const auto refused = [&](size_t got, const char* what) {
    return invalid_argument({}, "seconds_per_byte has {} {}; wanted {} rows of {} numbers", got,
                            what, ranks, ranks);
  };
  if (rows.items().size() != ranks) return refused(rows.items().size(), "rows");
  cluster.seconds_per_byte.clear();
  for (const Json& row : rows.items()) {
    if (row.items().size() != ranks) return refused(row.items().size(), "numbers in a row");
    for (const Json& cost : row.items()) {
      if (!cost.number())
        return invalid_argument({}, "seconds_per_byte holds a {}", to_string(cost.kind()));
      cluster.seconds_per_byte.push_back(*cost.number());
    }
  }
  return {};
}

Status read_links(const Json& json, Cluster& cluster) {
  if (json.is_array()) return read_matrix(json, cluster);
  MOE_RETURN_IF_ERROR(read_link(json, "node", cluster.node_link));
  MOE_RETURN_IF_ERROR(read_link(json, "rack", cluster.rack_link));
  MOE_RETURN_IF_ERROR(read_link(json, "cross_rack", cluster.cross_link));
  if (const Json* racks = json.find("rack_of_node")) {
    MOE_ASSIGN_OR_RETURN(cluster.rack_of_node, integers(*racks));
  }
  const Json* matrix = json.find("seconds_per_byte");
  return matrix ? read_matrix(*matrix, cluster) : Status();
}

}  // namespace

Result<Placement> parse_placement(std::string_view text, std::string_view name) {
  const Place place{.file = name, .phase = Phase::plan};
  return guarded(place, [&]() -> Result<Placement> {
    MOE_ASSIGN_OR_RETURN(const Json json, Json::parse(text, place));
    const Json* layers = chosen_plan(json).find("layers");
    if (!layers || layers->items().empty())
      return invalid_argument(place, "has no \"layers\" with \"expert_of_slot\"");
    Placement placement;
    for (const Json& entry : layers->items()) {
      MOE_ASSIGN_OR_RETURN(const int64_t index, entry.integer("layer"));
      const Json* slots = entry.find("expert_of_slot");
      if (!slots) return invalid_argument(place, "layer {} has no \"expert_of_slot\"", index);
      Result<std::vector<int32_t>> experts = integers(*slots);
      if (!experts.ok()) return experts.status().at(place);
      placement.layers.push_back({static_cast<int32_t>(index), *std::move(experts)});
    }
    return placement;
  });
}

std::string write_placement(const Placement& placement) {
  JsonWriter json;
  json.begin_object().key("layers").begin_array();
  for (const LayerPlacement& layer : placement.layers) {
    json.begin_object().key("layer").value(layer.layer).key("expert_of_slot").begin_array();
    for (int32_t expert : layer.expert_of_slot) json.value(expert);
    json.end_array().end_object();
  }
  json.end_array().end_object();
  return json.text();
}

Status parse_links(std::string_view text, std::string_view name, Cluster& cluster) {
  const Place place{.file = name, .phase = Phase::plan};
  return guarded(place, [&]() -> Status {
    MOE_ASSIGN_OR_RETURN(const Json json, Json::parse(text, place));
    Cluster changed = cluster;
    if (Status status = read_links(json, changed); !status.ok()) return status.at(place);
    if (Status status = validate(changed); !status.ok()) return status.at(place);
    cluster = std::move(changed);
    return {};
  });
}

}  // namespace moe
