#include "checkpoint/quantized.h"

#include <optional>

#include <fmt/format.h>

#include "checkpoint/quant_keys.h"
#include "checkpoint/quant_schemes.h"
#include "core/error.h"

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

QuantScheme fp8_scheme(QuantKeys& keys, const Json& config) {
  const std::string fmt = keys.text("fmt", "e4m3");
  if (fmt.find("e4m3") == std::string::npos) keys.refuse("fmt", json_quoted(fmt), "e4m3");
  const Json* block = config.find("weight_block_size");
  if (!block || block->is_null()) return {{FormatKind::fp8_block}, Packing::none};
  const std::optional<int32_t> size = square_block(block);
  if (!size) keys.refuse("weight_block_size", "not square", "two equal numbers");
  return {{FormatKind::fp8_block, size.value_or(0)}, Packing::none};
}

QuantScheme read(QuantKeys& keys, const Json& config) {
  const std::string_view method = text(config, "quant_method");
  if (method == "awq") return awq_scheme(keys);
  if (method == "gptq") return gptq_scheme(keys);
  if (method == "compressed-tensors") return compressed_scheme(keys);
  if (method == "fp8") return fp8_scheme(keys, config);
  const Json* inner = config.find("quantization");  // ModelOpt, in a file of its own or not
  const bool fp8 = text(inner ? *inner : config, "quant_algo") == "FP8";
  if (method != "fbgemm_fp8" && !fp8)
    keys.refuse(inner ? "quant_algo" : "quant_method", "none of them",
                "awq, gptq, compressed-tensors, fp8, fbgemm_fp8 or modelopt's FP8");
  return {{FormatKind::fp8_block}, Packing::none};
}

}  // namespace

Result<QuantScheme> quant_scheme(const Json& config, std::string_view file) {
  QuantKeys keys(config);
  const QuantScheme scheme = read(keys, config);
  if (keys.problem().empty()) return scheme;
  return error(StatusCode::unimplemented, {.file = file, .phase = Phase::open},
               "the checkpoint is quantised as {} (says {}), which cannot be read: {}; use another "
               "version of the model, such as bf16",
               quantization_name(config), file, keys.problem());
}

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
