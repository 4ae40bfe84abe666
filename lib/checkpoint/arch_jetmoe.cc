// JetMoE's feed-forward experts (its attention has experts of its own, which are the host's). The
// bias that follows their sum is read as each expert's down_bias: the weights sum to one.
#include "checkpoint/arch.h"

namespace moe {
namespace {

std::optional<FamilyLayer> jetmoe_layer(ModelConfig& config, int32_t layer) {
  LayerSpec spec =
      common_layer(config, layer, config.count({"intermediate_size", "ffn_hidden_size"}),
                   {"num_local_experts", "moe_num_experts"}, {"num_experts_per_tok", "moe_top_k"});
  spec.expert.activation = config.activation({"activation_function"}, Activation::silu);
  spec.expert.bias = true;
  spec.router.scoring = Scoring::identity;
  spec.router.weighting = Weighting::softmax_of_selected_logits;
  return FamilyLayer{spec, {}};
}

constexpr TensorRule kRules[] = {
    {WeightKind::router_weight, "mlp.router.layer.weight", "c h"},
    {WeightKind::gate, "mlp.input_linear.weight", "e (g i) h"},
    {WeightKind::gate_bias, kZeros, "(g i)"},
    {WeightKind::down, "mlp.output_linear.weight", "e h i"},
    {WeightKind::down_bias, "mlp.bias", "h"},
};

constexpr Family kRows[] = {
    {.model_type = "jetmoe",
     .layer = jetmoe_layer,
     .rules = kRules,
     .architecture = "JetMoeForCausalLM",
     .synthetic = R"("num_local_experts": $experts, "intermediate_size": $intermediate,
  "activation_function": "silu", "kv_channels": 64)"},
};

}  // namespace

std::span<const Family> jetmoe_rows() { return kRows; }

}  // namespace moe
