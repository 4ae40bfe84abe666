#include "model/quantized_config.h"

namespace moe {
namespace {

void write(const Json& value, JsonWriter* out) {
  switch (value.kind()) {
    case Json::Kind::null: out->null(); return;
    case Json::Kind::boolean: out->value(*value.boolean()); return;
    case Json::Kind::integer: out->value(*value.integer()); return;
    case Json::Kind::number: out->value(*value.number()); return;
    case Json::Kind::string: out->value(*value.string()); return;
    case Json::Kind::array:
      out->begin_array();
      for (const Json& item : value.items()) write(item, out);
      out->end_array();
      return;
    case Json::Kind::object:
      out->begin_object();
      for (const auto& [key, member] : value.members()) write(member, &out->key(key));
      out->end_object();
      return;
  }
}

void write_weights(const Format& format, JsonWriter* out) {
  out->begin_object();
  out->key("num_bits").value(format.kind == FormatKind::int4 ? 4 : 8);
  out->key("type").value("int").key("symmetric").value(true).key("dynamic").value(false);
  out->key("strategy").value(format.group > 0 ? "group" : "channel").key("group_size");
  if (format.group > 0)
    out->value(format.group);
  else
    out->null();
  out->end_object();
}

bool is_quantization(const std::string& key) {
  return key == "quantization_config" || key == "compression_config";
}

}  // namespace

std::string quantized_config(const Json& config, const Format& format,
                             const std::vector<std::string>& ignored) {
  JsonWriter out;
  out.begin_object();
  for (const auto& [key, member] : config.members())
    if (!is_quantization(key)) write(member, &out.key(key));
  out.key("quantization_config").begin_object();
  out.key("quant_method").value("compressed-tensors").key("format").value("pack-quantized");
  out.key("quantization_status").value("compressed");
  out.key("config_groups").begin_object().key("group_0").begin_object();
  out.key("targets").begin_array().value("Linear").end_array();
  write_weights(format, &out.key("weights"));
  out.key("input_activations").null().key("output_activations").null();
  out.end_object().end_object();
  out.key("ignore").begin_array();
  for (const std::string& module : ignored) out.value(module);
  out.end_array().end_object().end_object();
  return out.text() + "\n";
}

}  // namespace moe
