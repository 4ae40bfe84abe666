// DeepSeek's names: mlp.gate with e_score_correction_bias, mlp.experts.{e}, mlp.shared_experts.
// Many families kept them, and most of the routing rule.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

// mlp_layer_types, or dense layers first. moe_layer_freq is a step or (MiMo) a flag per layer.
bool sparse(ModelConfig& config, int32_t layer) {
  const int64_t frequency = config.count_or({"moe_layer_freq"}, 1, layer);
  if (config.length({"moe_layer_freq"})) return sparse_type(config, layer, frequency != 0);
  const bool late = layer >= config.count_or({"first_k_dense_replace"}, 0);
  return sparse_type(config, layer, late && (frequency <= 1 || layer % frequency == 0));
}

LayerSpec base_layer(ModelConfig& config, int32_t layer) {
  const int64_t intermediate = config.count({"moe_intermediate_size"});
  LayerSpec spec = common_layer(config, layer, intermediate,
                                {"n_routed_experts", "num_local_experts", "num_experts"});
  add_shared(&spec, config.count_or({"n_shared_experts"}, 0) * intermediate);
  return spec;
}

FamilyLayer v3_layer(ModelConfig& config, int32_t layer, bool norm_default) {
  LayerSpec spec = base_layer(config, layer);
  sigmoid_groups(config, &spec.router, {"n_group"}, {"topk_group"});
  if (config.flag_or({"norm_topk_prob"}, norm_default)) sum_to_one(&spec.router, 1e-20f);
  spec.router.scaling = config.number_or({"routed_scaling_factor"}, 1);
  return {spec, {WeightKind::router_selection_bias}};
}

template <bool kNormDefault>
std::optional<FamilyLayer> deepseek_v3_layer(ModelConfig& config, int32_t layer) {
  if (!sparse(config, layer)) return std::nullopt;
  return v3_layer(config, layer, kNormDefault);
}

// Softmax scores; groups by their best. The weights are either normalised or scaled, never both.
std::optional<FamilyLayer> deepseek_v2_layer(ModelConfig& config, int32_t layer) {
  if (!sparse(config, layer)) return std::nullopt;
  const std::string_view method = config.text_or({"topk_method"}, "greedy");
  if (method == "noaux_tc") return v3_layer(config, layer, false);
  if (method != "greedy" && method != "group_limited_greedy")
    config.refuse("topk_method", method, "greedy, group_limited_greedy or noaux_tc");
  LayerSpec spec = base_layer(config, layer);
  if (method == "group_limited_greedy") {
    spec.router.num_groups = static_cast<int32_t>(config.count({"n_group"}));
    spec.router.top_groups = static_cast<int32_t>(config.count({"topk_group"}));
  }
  if (spec.router.top_k > 1 && config.flag_or({"norm_topk_prob"}, false))
    sum_to_one(&spec.router, 1e-20f);
  else
    spec.router.scaling = config.number_or({"routed_scaling_factor"}, 1);
  return FamilyLayer{spec, {}};
}

constexpr TensorRule kCorrectionBias[] = {
    {WeightKind::router_selection_bias, "mlp.gate.e_score_correction_bias", "c"},
};
constexpr auto kRules =
    join(kMlpGate, kCorrectionBias, kProjExperts, kFusedExperts, kSharedExperts);

constexpr std::string_view kV3 = R"("n_routed_experts": $experts,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "n_shared_experts": $shared_experts, "n_group": $groups, "topk_group": $top_groups,
  "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": true,
  "routed_scaling_factor": 2.5, "first_k_dense_replace": 0, "moe_layer_freq": 1)";
constexpr std::string_view kUngrouped = R"("n_routed_experts": $experts,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "n_shared_experts": $shared_experts, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
  "scoring_func": "sigmoid", "norm_topk_prob": true, "routed_scaling_factor": 2.5,
  "first_k_dense_replace": 0)";
constexpr std::string_view kV2 = R"("n_routed_experts": $experts,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "n_shared_experts": $shared_experts, "topk_method": "greedy", "scoring_func": "softmax",
  "norm_topk_prob": false, "routed_scaling_factor": 1.0, "first_k_dense_replace": 0,
  "moe_layer_freq": 1)";
constexpr std::string_view kMimo = R"("n_routed_experts": $experts,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate, "n_group": 1,
  "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": true,
  "mlp_layer_types": $each("sparse"))";

constexpr Family kRows[] = {
    {.model_type = "deepseek", .layer = deepseek_v2_layer, .rules = kRules},
    {.model_type = "deepseek_v2",
     .layer = deepseek_v2_layer,
     .rules = kRules,
     .architecture = "DeepseekV2ForCausalLM",
     .synthetic = kV2,
     .synthetic_shared = 2},
    {.model_type = "deepseek_vl_v2", .layer = deepseek_v2_layer, .rules = kRules},
    {.model_type = "deepseek_v3",
     .layer = deepseek_v3_layer<true>,
     .rules = kRules,
     .architecture = "DeepseekV3ForCausalLM",
     .synthetic = kV3},
    {.model_type = "deepseek_v32", .layer = deepseek_v3_layer<true>, .rules = kRules},
    {.model_type = "kimi_k2",
     .layer = deepseek_v3_layer<true>,
     .rules = kRules,
     .architecture = "DeepseekV3ForCausalLM",
     .synthetic = kUngrouped},
    {.model_type = "dots1",
     .layer = deepseek_v3_layer<false>,
     .rules = kRules,
     .architecture = "Dots1ForCausalLM",
     .synthetic = kUngrouped},
    {.model_type = "glm4_moe",
     .layer = deepseek_v3_layer<true>,
     .rules = kRules,
     .architecture = "Glm4MoeForCausalLM",
     .synthetic = kUngrouped},
    {.model_type = "glm4v_moe_text", .layer = deepseek_v3_layer<true>, .rules = kRules},
    {.model_type = "glm4v_moe", .layer = deepseek_v3_layer<true>, .rules = kRules},
    {.model_type = "glm4_moe_lite", .layer = deepseek_v3_layer<true>, .rules = kRules},
    {.model_type = "glm_moe_dsa", .layer = deepseek_v3_layer<true>, .rules = kRules},
    {.model_type = "solar_open",
     .layer = deepseek_v3_layer<true>,
     .rules = kRules,
     .architecture = "SolarOpenForCausalLM",
     .synthetic = kUngrouped},
    {.model_type = "mimo_v2_flash",
     .layer = deepseek_v3_layer<true>,
     .rules = kRules,
     .architecture = "MiMoV2FlashForCausalLM",
     .synthetic = kMimo},
    {.model_type = "mimo_v2", .layer = deepseek_v3_layer<true>, .rules = kRules},
};

}  // namespace

std::span<const Family> deepseek_rows() { return kRows; }

}  // namespace moe
