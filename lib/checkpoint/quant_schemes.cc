#include "checkpoint/quant_schemes.h"

#include <optional>

#include <fmt/format.h>

namespace moe {
namespace {

FormatKind integer_kind(QuantKeys& keys, std::string_view key, bool int8_too = true) {
  const int64_t bits = keys.whole(key, 0);
  if (bits != 4 && !(bits == 8 && int8_too))
    keys.refuse(key, fmt::format("{}", bits), int8_too ? "4 or 8" : "4");
  return bits == 8 ? FormatKind::int8 : FormatKind::int4;
}

// Modules with settings of their own; "-:" leaves them as they were.
void check_dynamic(QuantKeys& keys) {
  const Json* dynamic = keys.object("dynamic");
  if (!dynamic) return;
  for (const auto& [modules, settings] : dynamic->members())
    if (modules.rfind("-:", 0) != 0)
      keys.refuse("dynamic", fmt::format("{} with settings of its own", json_quoted(modules)),
                  "modules that are left out (-:)");
}

// "group", "channel" and the like as Format::group.
int32_t group_of(QuantKeys& keys, const Json& weights) {
  const std::string strategy =
      keys.text("strategy", weights.find("group_size") ? "group" : "tensor");
  if (strategy == "group") return keys.group(0);
  if (strategy == "channel" || strategy == "tensor") return 0;
  if (strategy == "block")
    if (const auto size = square_block(weights.find("block_structure"))) return *size;
  keys.refuse("strategy", json_quoted(strategy),
              "group, channel, tensor, or block if it is square");
  return 0;
}

QuantScheme float_scheme(QuantKeys& keys, const Json& weights, const std::string& format) {
  if (keys.whole("num_bits", 8) != 8) keys.refuse("num_bits", "not 8", "8 for type float");
  if (format != "float-quantized" && format != "naive-quantized")
    keys.refuse("format", json_quoted(format), "float-quantized for 8 bit floats");
  if (keys.text("strategy", "tensor") == "group")
    keys.refuse("strategy", "group", "tensor, channel or block for 8 bit floats");
  return {{FormatKind::fp8_block, group_of(keys, weights)}, Packing::none};
}

QuantScheme integer_scheme(QuantKeys& keys, const Json& weights, const std::string& format) {
  const bool packed = format == "pack-quantized";
  if (!packed && format != "int-quantized" && format != "naive-quantized")
    keys.refuse("format", json_quoted(format), "pack-quantized or int-quantized for integers");
  QuantScheme scheme{.format = {integer_kind(keys, "num_bits")},
                     .packing = packed ? Packing::compressed : Packing::none};
  Format& made = scheme.format;
  if (!packed && made.kind == FormatKind::int4)
    keys.refuse("num_bits", "4", "8 unless the integers are packed");
  made.group = group_of(keys, weights);
  made.zero_points = !keys.flag("symmetric", true);
  const std::string order = keys.text("actorder", "weight");  // weight: no trace is left of it
  made.act_order = order == "group" || order == "dynamic";
  if (!made.act_order && order != "weight" && order != "static")
    keys.refuse("actorder", json_quoted(order), "group or weight");
  const std::string strategy = keys.text("strategy", "");
  if (strategy == "block")
    keys.refuse("strategy", "block", "group, channel or tensor for integers");
  if (strategy == "tensor" && made.zero_points)
    keys.refuse("symmetric", "false", "true for strategy tensor");
  if (made.group == 0) made.act_order = false;  // all inputs are in one group
  return scheme;
}

// What one of config_groups says of the weights.
QuantScheme group_scheme(QuantKeys& keys, const std::string& name, const Json& group,
                         const std::string& format) {
  const Json* weights = group.find("weights");
  if (!weights || !weights->is_object()) {
    keys.refuse("config_groups." + name + ".weights", "absent", "an object");
    return {};
  }
  QuantKeys own(group);
  const std::string own_format = own.text("format", format);
  QuantKeys inner(*weights, fmt::format("config_groups.{}.weights", name));
  const std::string type = inner.text("type", "int");
  if (inner.flag("dynamic", false)) inner.refuse("dynamic", "true", "false for weights");
  QuantScheme scheme;
  if (type == "float")
    scheme = float_scheme(inner, *weights, own_format);
  else if (type == "int")
    scheme = integer_scheme(inner, *weights, own_format);
  else
    inner.refuse("type", json_quoted(type), "int or float");
  keys.take(own);
  keys.take(inner);
  return scheme;
}

// Sparse or rotated weights are others than those that are stored.
void check_plain(QuantKeys& keys) {
  if (const Json* sparsity = keys.object("sparsity_config")) {
    QuantKeys own(*sparsity, "sparsity_config");
    const std::string format = own.text("format", "dense");
    if (format != "dense") own.refuse("format", json_quoted(format), "dense");
    keys.take(own);
  }
  if (const Json* transform = keys.object("transform_config")) {
    QuantKeys own(*transform, "transform_config");
    if (own.object("config_groups")) own.refuse("config_groups", "not empty", "no transforms");
    keys.take(own);
  }
}

}  // namespace

QuantScheme awq_scheme(QuantKeys& keys) {
  const FormatKind kind = integer_kind(keys, "bits", false);
  const std::string version = keys.text("version", "gemm");
  if (version != "gemm") keys.refuse("version", json_quoted(version), "gemm");
  if (!keys.flag("zero_point", true)) keys.refuse("zero_point", "false", "true");
  return {{.kind = kind, .group = keys.group(0), .zero_points = true}, Packing::awq};
}

QuantScheme gptq_scheme(QuantKeys& keys) {
  QuantScheme scheme{.format = {integer_kind(keys, "bits"), keys.group(0)},
                     .packing = Packing::gptq};
  scheme.format.zero_points = !keys.flag("sym", true);
  scheme.format.act_order = keys.flag("desc_act", false) && scheme.format.group > 0;
  const std::string stored = keys.text("checkpoint_format", keys.text("format", "gptq"));
  if (stored == "gptq_v2")
    scheme.packing = Packing::gptq_v2;
  else if (stored != "gptq")
    keys.refuse("checkpoint_format", json_quoted(stored), "gptq or gptq_v2");
  const std::string words = keys.text("pack_dtype", "int32");
  if (words != "int32") keys.refuse("pack_dtype", json_quoted(words), "int32");
  if (keys.flag("is_marlin_format", false)) keys.refuse("is_marlin_format", "true", "false");
  check_dynamic(keys);
  return scheme;
}

QuantScheme compressed_scheme(QuantKeys& keys) {
  const std::string format = keys.text("format", "");
  check_plain(keys);
  const Json* groups = keys.object("config_groups");
  if (!groups) {
    keys.refuse("config_groups", "absent or empty", "an object");
    return {};
  }
  std::optional<QuantScheme> scheme;
  for (const auto& [name, group] : groups->members()) {
    const QuantScheme found = group_scheme(keys, name, group, format);
    if (!keys.problem().empty()) return {};
    if (scheme && *scheme != found)
      keys.refuse(
          "config_groups",
          fmt::format("{} with weights unlike those of {}", name, groups->members().front().first),
          "groups whose weights are stored alike");
    scheme = found;
  }
  return *scheme;
}

}  // namespace moe
