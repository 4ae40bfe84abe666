#include "checkpoint/synthetic_config.h"

#include <algorithm>

#include <fmt/format.h>

#include "core/error.h"

namespace moe {
namespace {

Status in_range(const char* field, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return {};
  return invalid_argument({}, "SyntheticSpec::{} is {}, wanted {} to {}", field, value, least,
                          most);
}

Status check(const SyntheticSpec& spec, const Family& family) {
  constexpr int64_t kMost = int64_t{1} << 24;
  if (family.synthetic.empty())
    return error(StatusCode::unimplemented, {}, "no synthetic model of family {} can be made",
                 family.model_type);
  MOE_RETURN_IF_ERROR(in_range("layers", spec.layers, 1, 10000));
  MOE_RETURN_IF_ERROR(in_range("experts", spec.experts, 1, 65536));
  MOE_RETURN_IF_ERROR(in_range("top_k", spec.top_k, 1, spec.experts));
  MOE_RETURN_IF_ERROR(in_range("hidden", spec.hidden, 1, kMost));
  MOE_RETURN_IF_ERROR(in_range("intermediate", spec.intermediate, 1, kMost));
  MOE_RETURN_IF_ERROR(in_range("shared_intermediate", spec.shared_intermediate, 0, kMost));
  MOE_RETURN_IF_ERROR(in_range("shard_bytes", spec.shard_bytes, 1, int64_t{1} << 60));
  if (spec.dtype != DType::bf16 && spec.dtype != DType::f16 && spec.dtype != DType::f32 &&
      spec.dtype != DType::f8_e4m3)
    return invalid_argument({}, "SyntheticSpec::dtype is {}, wanted bf16, f16, f32 or f8_e4m3",
                            to_string(spec.dtype));
  const bool counted = family.synthetic.find("$shared_experts") != std::string_view::npos;
  if (counted && spec.shared_intermediate % spec.intermediate != 0)
    return invalid_argument({},
                            "SyntheticSpec::shared_intermediate is {}, wanted a multiple of "
                            "intermediate ({}): family {} counts shared experts",
                            spec.shared_intermediate, spec.intermediate, family.model_type);
  if (spec.shared_intermediate > 0 && family.synthetic.find("$shared") == std::string_view::npos)
    return invalid_argument({},
                            "SyntheticSpec::shared_intermediate is {}, but family {} has no "
                            "shared experts",
                            spec.shared_intermediate, family.model_type);
  return {};
}

const char* torch_name(DType type) {
  return type == DType::f16 ? "float16" : type == DType::f32 ? "float32" : "bfloat16";
}

// As DeepSeek-V3 publishes it.
constexpr std::string_view kFp8 = R"("quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
    "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
  )";

void replace_all(std::string* text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text->find(from, at)) != std::string::npos; at += to.size())
    text->replace(at, from.size(), to);
}

// [0, 1, 2]
std::string indices(int32_t layers) {
  std::string list = "[";
  for (int32_t layer = 0; layer < layers; ++layer)
    list += (layer ? ", " : "") + std::to_string(layer);
  return list + "]";
}

// $each("sparse") -> ["sparse", "sparse"]
void expand_lists(std::string* text, int32_t layers) {
  constexpr std::string_view kEach = "$each(";
  for (size_t at; (at = text->find(kEach)) != std::string::npos;) {
    const size_t end = text->find(')', at);
    const std::string item = text->substr(at + kEach.size(), end - at - kEach.size());
    std::string list = "[";
    for (int32_t layer = 0; layer < layers; ++layer) list += (layer ? ", " : "") + item;
    text->replace(at, end + 1 - at, list + "]");
  }
}

}  // namespace

Result<std::string> synthetic_config(const SyntheticSpec& spec, const Family& family) {
  MOE_RETURN_IF_ERROR(check(spec, family));
  std::string text = fmt::format(
      R"({{
  "architectures": ["{}"],
  "model_type": "{}",
  "dtype": "{}",
  "torch_dtype": "{}",
  "hidden_size": {},
  "num_hidden_layers": {},
  "num_experts_per_tok": {},
  "hidden_act": "{}",
  "num_attention_heads": 1,
  "num_key_value_heads": 1,
  "head_dim": 64,
  "vocab_size": 256,
  {}{}
}}
)",
      family.architecture, family.model_type, torch_name(spec.dtype), torch_name(spec.dtype),
      spec.hidden, spec.layers, spec.top_k, family.activation,
      spec.dtype == DType::f8_e4m3 ? kFp8 : "", family.synthetic);

  // As many groups as DeepSeek-V3 has, where the experts can be dealt out to them.
  const bool grouped =
      spec.experts % 8 == 0 && spec.experts >= 16 && spec.top_k <= spec.experts / 2;
  const int64_t shared = spec.shared_intermediate > 0 ? spec.shared_intermediate
                                                      : spec.intermediate * family.synthetic_shared;
  expand_lists(&text, spec.layers);
  replace_all(&text, "$indices", indices(spec.layers));
  replace_all(&text, "$shared_experts", std::to_string(shared / spec.intermediate));
  replace_all(&text, "$shared", std::to_string(shared));
  replace_all(&text, "$half_experts", std::to_string(spec.experts / 2));
  replace_all(&text, "$experts", std::to_string(spec.experts));
  replace_all(&text, "$top_k", std::to_string(spec.top_k));
  replace_all(&text, "$layers", std::to_string(spec.layers));
  replace_all(&text, "$hidden", std::to_string(spec.hidden));
  replace_all(&text, "$intermediate", std::to_string(spec.intermediate));
  replace_all(&text, "$groups", grouped ? "8" : "1");
  replace_all(&text, "$top_groups", grouped ? "4" : "1");
  return text;
}

}  // namespace moe
