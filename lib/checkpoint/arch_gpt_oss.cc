// gpt-oss: fused experts with biases, gate and up interleaved, and a router bias. Hugging Face's
// files keep (in, out); the original ones (out, in).
#include "checkpoint/arch.h"

namespace moe {
namespace {

std::optional<FamilyLayer> gpt_oss_layer(ModelConfig& config, int32_t layer) {
  LayerSpec spec = common_layer(config, layer, config.count({"intermediate_size"}),
                                {"num_local_experts", "num_experts"},
                                {"num_experts_per_tok", "experts_per_token"});
  spec.expert.activation = Activation::swiglu_oai;
  spec.expert.alpha = 1.702f;
  spec.expert.limit = config.number_or({"swiglu_limit"}, 7.0f);
  spec.expert.bias = true;
  spec.router.scoring = Scoring::identity;
  spec.router.weighting = Weighting::softmax_of_selected_logits;
  return FamilyLayer{spec, {WeightKind::router_bias}};
}

constexpr TensorRule kRules[] = {
    {WeightKind::router_weight, "mlp.router.weight", "c h"},
    {WeightKind::router_bias, "mlp.router.bias", "c"},
    {WeightKind::gate, "mlp.experts.gate_up_proj", "e h (i g)"},
    {WeightKind::gate_bias, "mlp.experts.gate_up_proj_bias", "e (i g)"},
    {WeightKind::down, "mlp.experts.down_proj", "e i h"},
    {WeightKind::down_bias, "mlp.experts.down_proj_bias", "e h"},

    {WeightKind::router_weight, "mlp.gate.weight", "c h"},
    {WeightKind::router_bias, "mlp.gate.bias", "c"},
    {WeightKind::gate, "mlp.mlp1_weight", "e (i g) h"},
    {WeightKind::gate_bias, "mlp.mlp1_bias", "e (i g)"},
    {WeightKind::down, "mlp.mlp2_weight", "e h i"},
    {WeightKind::down_bias, "mlp.mlp2_bias", "e h"},
};

constexpr Family kRows[] = {
    {.model_type = "gpt_oss",
     .layer = gpt_oss_layer,
     .rules = kRules,
     .architecture = "GptOssForCausalLM",
     .synthetic = R"("num_local_experts": $experts, "experts_per_token": $top_k,
  "intermediate_size": $intermediate, "swiglu_limit": 7.0,
  "layer_types": $each("full_attention"))"},
};

}  // namespace

std::span<const Family> gpt_oss_rows() { return kRows; }

}  // namespace moe
