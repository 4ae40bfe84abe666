// Qwen's names: mlp.gate, mlp.experts.{e}.gate_proj and so on, and a gated mlp.shared_expert.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

bool sparse(ModelConfig& config, int32_t layer) {
  if (config.lists({"mlp_only_layers"}, layer).value_or(false)) return false;
  const int64_t step = config.count_or({"decoder_sparse_step"}, 1);
  return step <= 1 || (layer + 1) % step == 0;
}

LayerSpec base_layer(ModelConfig& config, int32_t layer, int64_t intermediate, bool sum_to_1) {
  LayerSpec spec = common_layer(config, layer, intermediate, {"num_experts", "num_local_experts"});
  if (sum_to_1) sum_to_one(&spec.router);
  return spec;
}

// `norm_topk_prob` of the class where config.json does not say.
template <bool kNormDefault>
std::optional<FamilyLayer> qwen_layer(ModelConfig& config, int32_t layer) {
  if (!sparse(config, layer)) return std::nullopt;
  return FamilyLayer{base_layer(config, layer, config.count({"moe_intermediate_size"}),
                                config.flag_or({"norm_topk_prob"}, kNormDefault)),
                     {}};
}

// With a shared expert that is scaled by its own sigmoid gate.
template <bool kNormDefault>
std::optional<FamilyLayer> qwen_shared_layer(ModelConfig& config, int32_t layer) {
  auto result = qwen_layer<kNormDefault>(config, layer);
  if (result) add_shared(&result->spec, config.count({"shared_expert_intermediate_size"}), true);
  return result;
}

// Qwen3.5 has no norm_topk_prob: the weights always sum to one.
std::optional<FamilyLayer> qwen3_5_layer(ModelConfig& config, int32_t layer) {
  auto result = qwen_shared_layer<true>(config, layer);
  if (result) sum_to_one(&result->spec.router);
  return result;
}

std::optional<FamilyLayer> olmoe_layer(ModelConfig& config, int32_t layer) {
  return FamilyLayer{base_layer(config, layer, config.count({"intermediate_size"}),
                                config.flag_or({"norm_topk_prob"}, false)),
                     {}};
}

constexpr auto kPlain = join(kMlpGate, kProjExperts, kFusedExperts);
// Fused in (in, out) order, gate in the first half of the columns.
constexpr auto kVision = join(kMlpGate, kFusedTransposedExperts, kProjExperts, kFusedExperts);
constexpr auto kShared = join(kMlpGate, kProjExperts, kFusedExperts, kGatedSharedExpert);
constexpr auto kFusedShared = join(kMlpGate, kFusedExperts, kProjExperts, kGatedSharedExpert);

constexpr std::string_view kQwen3 = R"("num_experts": $experts,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [])";
constexpr std::string_view kQwen3Shared = R"("num_experts": $experts,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "shared_expert_intermediate_size": $shared, "norm_topk_prob": true, "decoder_sparse_step": 1,
  "mlp_only_layers": [], "layer_types": $each("full_attention"))";
constexpr std::string_view kQwen2 = R"("num_experts": $experts,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "shared_expert_intermediate_size": $shared, "norm_topk_prob": false, "decoder_sparse_step": 1,
  "mlp_only_layers": [])";
constexpr std::string_view kOlmoe = R"("num_experts": $experts,
  "intermediate_size": $intermediate, "norm_topk_prob": false)";

constexpr Family kRows[] = {
    {.model_type = "qwen2_moe",
     .layer = qwen_shared_layer<false>,
     .rules = kShared,
     .architecture = "Qwen2MoeForCausalLM",
     .synthetic = kQwen2,
     .synthetic_shared = 4},
    {.model_type = "qwen3_moe",
     .layer = qwen_layer<false>,
     .rules = kPlain,
     .architecture = "Qwen3MoeForCausalLM",
     .synthetic = kQwen3},
    {.model_type = "qwen3_next",
     .layer = qwen_shared_layer<true>,
     .rules = kShared,
     .architecture = "Qwen3NextForCausalLM",
     .synthetic = kQwen3Shared},
    {.model_type = "qwen3_5_moe_text",
     .layer = qwen3_5_layer,
     .rules = kFusedShared,
     .architecture = "Qwen3_5MoeForCausalLM",
     .synthetic = kQwen3Shared},
    {.model_type = "qwen3_5_moe", .layer = qwen3_5_layer, .rules = kFusedShared},
    {.model_type = "qwen3_vl_moe_text",
     .layer = qwen_layer<true>,
     .rules = kVision,
     .architecture = "Qwen3VLMoeForConditionalGeneration",
     .synthetic = kQwen3},
    {.model_type = "qwen3_vl_moe", .layer = qwen_layer<true>, .rules = kVision},
    {.model_type = "qwen3_omni_moe_text", .layer = qwen_layer<false>, .rules = kPlain},
    {.model_type = "qwen3_omni_moe", .layer = qwen_layer<false>, .rules = kPlain},
    {.model_type = "olmoe",
     .layer = olmoe_layer,
     .rules = kPlain,
     .architecture = "OlmoeForCausalLM",
     .synthetic = kOlmoe},
    {.model_type = "flex_olmo",
     .layer = olmoe_layer,
     .rules = kPlain,
     .architecture = "FlexOlmoForCausalLM",
     .synthetic = kOlmoe},
};

}  // namespace

std::span<const Family> qwen_rows() { return kRows; }

}  // namespace moe
