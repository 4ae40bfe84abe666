#include "checkpoint/quantized.h"

#include <optional>

#include <fmt/format.h>

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

// [128, 128] as 128; 0 without one; nothing for blocks that are not square.
std::optional<int32_t> square_block(const Json* block) {
  if (!block || block->is_null()) return 0;
  if (block->items().size() != 2) return std::nullopt;
  const int64_t high = block->items()[0].integer().value_or(0);
  const int64_t wide = block->items()[1].integer().value_or(0);
  if (high != wide || high < 1 || high > (1 << 20)) return std::nullopt;
  return static_cast<int32_t>(high);
}

std::optional<Format> fp8(std::optional<int32_t> block) {
  if (!block) return std::nullopt;
  return Format{FormatKind::fp8_block, *block};
}

// compressed-tensors: every group of modules says how its weights are stored.
std::optional<Format> compressed_fp8(const Json& config) {
  const Json* groups = config.find("config_groups");
  if (!groups || groups->members().empty()) return std::nullopt;
  std::optional<Format> format;
  for (const auto& [name, group] : groups->members()) {
    const Json* weights = group.find("weights");
    if (!weights || text(*weights, "type") != "float" || number(*weights, "num_bits") != 8)
      return std::nullopt;
    const bool blocks = text(*weights, "strategy") == "block";
    const auto found = fp8(square_block(blocks ? weights->find("block_structure") : nullptr));
    if (!found || (blocks && found->group == 0) || (format && *format != *found))
      return std::nullopt;
    format = found;
  }
  return format;
}

std::optional<Format> readable(const Json& config) {
  const std::string_view method = text(config, "quant_method");
  if (method == "fp8") {
    if (text(config, "fmt", "e4m3").find("e4m3") == std::string_view::npos) return std::nullopt;
    return fp8(square_block(config.find("weight_block_size")));
  }
  if (method == "fbgemm_fp8") return fp8(0);
  if (method == "compressed-tensors") return compressed_fp8(config);
  const Json* inner = config.find("quantization");  // ModelOpt, in a file of its own or not
  if (text(inner ? *inner : config, "quant_algo") == "FP8") return fp8(0);
  return std::nullopt;
}

}  // namespace

Result<Format> quantized_format(const Json& config, std::string_view file) {
  if (const std::optional<Format> format = readable(config)) return *format;
  return error(StatusCode::unimplemented, {.file = file, .phase = Phase::open},
               "the checkpoint is quantised as {} (says {}), which is not supported yet; use the "
               "bf16, f16 or f32 version of the model",
               quantization_name(config), file);
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
