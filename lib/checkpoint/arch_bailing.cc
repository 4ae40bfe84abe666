// Bailing (Ling, Ring): softmax scores without a bias, or sigmoid scores with one and groups.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

std::optional<FamilyLayer> bailing_layer(ModelConfig& config, int32_t layer) {
  if (layer < config.count_or({"first_k_dense_replace"}, 0)) return std::nullopt;
  const int64_t intermediate = config.count({"moe_intermediate_size"});
  LayerSpec spec = common_layer(config, layer, intermediate, {"num_experts"});
  add_shared(&spec, config.count_or({"num_shared_experts"}, 0) *
                        config.count_or({"moe_shared_expert_intermediate_size"}, intermediate));
  const std::string_view function = config.text_or({"score_function"}, "softmax");
  const bool bias = config.flag_or({"moe_router_enable_expert_bias"}, function == "sigmoid");
  if (function != (bias ? "sigmoid" : "softmax"))
    config.refuse(
        "score_function", function,
        bias ? "sigmoid, as there is an expert bias" : "softmax, as there is no expert bias");
  if (bias) sigmoid_groups(config, &spec.router, {"n_group"}, {"topk_group"});
  if (config.flag_or({"norm_topk_prob"}, true)) sum_to_one(&spec.router, 1e-20f);
  spec.router.scaling = config.number_or({"routed_scaling_factor"}, 1);
  FamilyLayer result{spec, {}};
  if (bias) result.router.push_back(WeightKind::router_selection_bias);
  return result;
}

constexpr TensorRule kExpertBias[] = {
    {WeightKind::router_selection_bias, "mlp.gate.expert_bias", "c"},
};
constexpr auto kRules = join(kMlpGate, kExpertBias, kProjExperts, kFusedExperts, kSharedExperts);

constexpr std::string_view kV2 = R"("num_experts": $experts,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "num_shared_experts": $shared_experts, "score_function": "sigmoid",
  "moe_router_enable_expert_bias": true, "n_group": $groups, "topk_group": $top_groups,
  "norm_topk_prob": true, "routed_scaling_factor": 2.5, "first_k_dense_replace": 0)";

constexpr Family kRows[] = {
    {.model_type = "bailing_moe", .layer = bailing_layer, .rules = kRules},
    {.model_type = "bailing_moe_v2",
     .layer = bailing_layer,
     .rules = kRules,
     .architecture = "BailingMoeV2ForCausalLM",
     .synthetic = kV2},
    {.model_type = "bailing_hybrid", .layer = bailing_layer, .rules = kRules},
    {.model_type = "bailing_moe_linear", .layer = bailing_layer, .rules = kRules},
};

}  // namespace

std::span<const Family> bailing_rows() { return kRows; }

}  // namespace moe
