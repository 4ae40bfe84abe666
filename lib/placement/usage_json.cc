#include "core/json.h"
#include "placement/text.h"
#include "placement/usage_builder.h"

namespace moe::placement {
namespace {

Status wanted_array(const Json& json) {
  if (json.is_array()) return {};
  return invalid_argument({}, "wanted an array of numbers, got {}", to_string(json.kind()));
}

template <class T>
Status append_numbers(const Json& array, std::vector<T>& out) {
  MOE_RETURN_IF_ERROR(wanted_array(array));
  for (const Json& item : array.items()) {
    const std::optional<double> number = item.number();
    if (!number) return invalid_argument({}, "wanted a number, got {}", to_string(item.kind()));
    out.push_back(static_cast<T>(*number));
  }
  return {};
}

// The first `count` of an array that are to be experts.
Status append_experts(const Json& array, size_t count, std::vector<int32_t>& out) {
  MOE_RETURN_IF_ERROR(wanted_array(array));
  for (size_t i = 0; i < count; ++i) {
    const std::optional<int64_t> expert = array.items()[i].integer();
    if (!expert || *expert < 0 || *expert >= UsageBuilder::kMaxExpert)
      return invalid_argument({}, "entry {} is no expert; wanted an integer from 0 to {}", i,
                              UsageBuilder::kMaxExpert - 1);
    out.push_back(static_cast<int32_t>(*expert));
  }
  return {};
}

// [[...]] of (layers, experts), or a list of such.
int depth_of(const Json& value) {
  if (!value.is_array()) return 0;
  return 1 + (value.items().empty() ? 0 : depth_of(value.items().front()));
}

// One (layers, experts) matrix: added to `trace`, and to the layers' steps if there are several.
Status add_matrix(const Json& matrix, bool keep_step, UsageTrace& trace) {
  if (trace.layers.empty()) trace.layers.resize(matrix.items().size());
  if (matrix.items().size() != trace.layers.size())
    return invalid_argument({}, "logical_count has steps of {} and {} layers", trace.layers.size(),
                            matrix.items().size());
  for (size_t l = 0; l < trace.layers.size(); ++l) {
    LayerUsage& layer = trace.layers[l];
    layer.layer = static_cast<int32_t>(l);
    std::vector<double> row;
    const Status status = append_numbers(matrix.items()[l], row);
    if (!status.ok()) return status.at({.layer = layer.layer});
    if (layer.tokens.empty()) layer.tokens.assign(row.size(), 0.0);
    if (row.size() != layer.tokens.size())
      return invalid_argument({.layer = layer.layer}, "{} experts in one step, {} in another",
                              row.size(), layer.tokens.size());
    for (size_t e = 0; e < row.size(); ++e) layer.tokens[e] += row[e];
    if (keep_step) layer.steps.insert(layer.steps.end(), row.begin(), row.end());
  }
  return {};
}

Result<UsageTrace> parse_logical_count(const Json& counts) {
  const int depth = depth_of(counts);
  if (depth != 2 && depth != 3)
    return invalid_argument({},
                            "logical_count has {} axes; wanted (layers, experts) or "
                            "(steps, layers, experts)",
                            depth);
  UsageTrace trace;
  if (depth == 2) MOE_RETURN_IF_ERROR(add_matrix(counts, false, trace));
  if (depth == 3)
    for (const Json& step : counts.items()) MOE_RETURN_IF_ERROR(add_matrix(step, true, trace));
  return trace;
}

// [[id, id, ..., count], ...]
Status parse_sets(const Json& array, ExpertSets& sets) {
  for (const Json& entry : array.items()) {
    const size_t size = entry.items().size();
    const std::optional<double> count = size < 2 ? std::nullopt : entry.items().back().number();
    if (!count) return invalid_argument({}, "a set needs an expert and a count");
    std::vector<int32_t> experts;
    MOE_RETURN_IF_ERROR(append_experts(entry, size - 1, experts));
    sets.add(experts, *count);
  }
  return {};
}

Result<UsageTrace> parse_own(const Json& json) {
  UsageTrace trace;
  MOE_ASSIGN_OR_RETURN(const int64_t top_k, json.integer("top_k", 0));
  if (top_k < 0 || top_k > UsageBuilder::kMaxExpert)
    return invalid_argument({}, "top_k is {}", top_k);
  trace.top_k = static_cast<int32_t>(top_k);
  const Json* layers = json.find("layers");
  if (!layers) return invalid_argument({}, "has no \"layers\"");
  for (const Json& entry : layers->items()) {
    LayerUsage layer;
    MOE_ASSIGN_OR_RETURN(const int64_t index, entry.integer("layer"));
    if (index < 0 || index >= UsageBuilder::kMaxLayer)
      return invalid_argument({}, "layer {} is out of range", index);
    layer.layer = static_cast<int32_t>(index);
    if (const Json* tokens = entry.find("tokens"))
      MOE_RETURN_IF_ERROR(append_numbers(*tokens, layer.tokens));
    if (const Json* steps = entry.find("steps"))
      MOE_RETURN_IF_ERROR(append_numbers(*steps, layer.steps));
    if (const Json* sets = entry.find("sets")) MOE_RETURN_IF_ERROR(parse_sets(*sets, layer.sets));
    trace.layers.push_back(std::move(layer));
  }
  return trace;
}

}  // namespace

Result<UsageTrace> parse_usage_json(std::string_view text, const UsageFileOptions& options) {
  MOE_ASSIGN_OR_RETURN(const Json json, Json::parse(text, {}));
  UsageTrace trace;
  if (const Json* counts = json.find("logical_count")) {
    MOE_ASSIGN_OR_RETURN(trace, parse_logical_count(*counts));
  } else {
    MOE_ASSIGN_OR_RETURN(const std::string_view format, json.string("format", ""));
    if (format != "moe-usage-1")
      return invalid_argument({}, "has neither \"logical_count\" nor \"format\": \"moe-usage-1\"");
    MOE_ASSIGN_OR_RETURN(trace, parse_own(json));
  }
  if (options.coverage < 1)
    for (LayerUsage& layer : trace.layers) layer.sets = prune(layer.sets, options.coverage);
  return trace;
}

Result<UsageTrace> parse_usage_lines(std::string_view text, const UsageFileOptions& options) {
  UsageBuilder builder;
  const auto add_line = [&](std::string_view line) -> Status {
    MOE_ASSIGN_OR_RETURN(const Json json, Json::parse(line, {}));
    MOE_ASSIGN_OR_RETURN(const int64_t layer, json.integer("layer"));
    const Json* experts = json.find("experts");
    if (!experts) return invalid_argument({}, "has no \"experts\"");
    std::vector<int32_t> ids;
    MOE_RETURN_IF_ERROR(append_experts(*experts, experts->items().size(), ids));
    return builder.add_token(layer, std::move(ids));
  };
  Status status;
  int64_t line_number = 0;
  for_each_piece(text, '\n', [&](std::string_view line) {
    ++line_number;
    if (trimmed(line).empty()) return true;
    status = add_line(line);
    if (!status.ok()) status = invalid_argument({}, "line {}: {}", line_number, status.message());
    return status.ok();
  });
  MOE_RETURN_IF_ERROR(status);
  return builder.finish(options);
}

}  // namespace moe::placement

namespace moe {

std::string write_usage(const UsageTrace& usage) {
  JsonWriter json;
  json.begin_object().key("format").value("moe-usage-1").key("top_k").value(usage.top_k);
  json.key("layers").begin_array();
  const auto numbers = [&](const char* key, const auto& values) {
    if (values.empty()) return;
    json.key(key).begin_array();
    for (double value : values) json.value(value);
    json.end_array();
  };
  for (const LayerUsage& layer : usage.layers) {
    json.begin_object().key("layer").value(layer.layer);
    numbers("tokens", layer.tokens);
    numbers("steps", layer.steps);
    if (layer.sets.size() > 0) json.key("sets").begin_array();
    for (int64_t i = 0; i < layer.sets.size(); ++i) {
      json.begin_array();
      for (int32_t expert : layer.sets[i]) json.value(expert);
      json.value(layer.sets.counts[i]).end_array();
    }
    if (layer.sets.size() > 0) json.end_array();
    json.end_object();
  }
  json.end_array().end_object();
  return json.text();
}

}  // namespace moe
