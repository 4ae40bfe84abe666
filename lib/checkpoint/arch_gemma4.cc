// Gemma 4: the router sees rmsnorm(x) * hidden^-0.5 * scale of rows that are not those the experts
// compute on (ForwardOptions::router_input). Its weights are scaled per expert.
#include "checkpoint/arch.h"

namespace moe {
namespace {

std::optional<FamilyLayer> gemma4_layer(ModelConfig& config, int32_t layer) {
  if (!config.flag_or({"enable_moe_block"}, true)) return std::nullopt;
  LayerSpec spec = common_layer(config, layer,
                                config.count({"moe_intermediate_size", "expert_intermediate_size"}),
                                {"num_experts"}, {"top_k_experts", "num_experts_per_tok"});
  spec.expert.activation = config.activation({"hidden_activation"}, Activation::gelu_tanh);
  sum_to_one(&spec.router);
  spec.router.normalize_input = true;
  spec.router.input_norm_epsilon = config.number_or({"rms_norm_eps"}, 1e-6f);
  return FamilyLayer{spec, {WeightKind::router_per_expert_scale, WeightKind::router_input_scale}};
}

constexpr TensorRule kRules[] = {
    {WeightKind::router_weight, "router.proj.weight", "c h"},
    {WeightKind::router_input_scale, "router.scale", "h"},
    {WeightKind::router_per_expert_scale, "router.per_expert_scale", "c"},
    {WeightKind::router_per_expert_scale, "moe.per_expert_scale", "c"},
    {WeightKind::gate, "experts.gate_up_proj", "e (g i) h"},
    {WeightKind::gate, "moe.experts.gate_up_proj", "e (g i) h"},
    {WeightKind::gate, "moe.gate_up_proj", "e (g i) h"},
    {WeightKind::down, "experts.down_proj", "e h i"},
    {WeightKind::down, "moe.experts.down_proj", "e h i"},
    {WeightKind::down, "moe.down_proj", "e h i"},
};

constexpr Family kRows[] = {
    {.model_type = "gemma4_text",
     .layer = gemma4_layer,
     .rules = kRules,
     .architecture = "Gemma4ForCausalLM",
     .synthetic = R"("num_experts": $experts, "top_k_experts": $top_k,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "enable_moe_block": true, "hidden_activation": "gelu_pytorch_tanh",
  "layer_types": $each("full_attention"))"},
    {.model_type = "gemma4", .layer = gemma4_layer, .rules = kRules},
};

}  // namespace

std::span<const Family> gemma4_rows() { return kRows; }

}  // namespace moe
