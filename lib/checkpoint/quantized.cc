#include "checkpoint/quantized.h"

#include <fmt/format.h>

namespace moe {
namespace {

std::string_view text(const Json& config, std::string_view key, std::string_view otherwise = "") {
  const Json* value = config.find(key);
  return value ? value->string().value_or(otherwise) : otherwise;
}

int64_t number(const Json& config, std::string_view key) {
  const Json* value = config.find(key);
  return value ? value->integer().value_or(0) : 0;
}

std::string fp8_name(const Json& config) {
  const Json* block = config.find("weight_block_size");
  if (!block || block->items().size() != 2) return "fp8 with one scale per tensor";
  return fmt::format("fp8 in {} x {} blocks", block->items()[0].integer().value_or(0),
                     block->items()[1].integer().value_or(0));
}

std::string bitsandbytes_name(const Json& config) {
  if (config.find("load_in_4bit") && config.find("load_in_4bit")->boolean().value_or(false))
    return fmt::format("bitsandbytes 4 bit ({})", text(config, "bnb_4bit_quant_type", "fp4"));
  return "bitsandbytes 8 bit";
}

}  // namespace

std::string quantization_name(const Json& config) {
  const std::string_view method = text(config, "quant_method");
  if (method == "fp8") return fp8_name(config);
  if (method == "awq" || method == "gptq")
    return fmt::format("{} {} bit, groups of {}", method, number(config, "bits"),
                       number(config, "group_size"));
  if (method == "bitsandbytes") return bitsandbytes_name(config);
  if (method == "compressed-tensors")
    return fmt::format("compressed-tensors {}", text(config, "format", "of unknown format"));
  const Json* inner = config.find("quantization");  // hf_quant_config.json
  const std::string_view algorithm = text(inner ? *inner : config, "quant_algo");
  if (!algorithm.empty()) return fmt::format("modelopt {}", algorithm);
  return method.empty() ? "an unnamed quantisation" : std::string(method);
}

}  // namespace moe
