// DBRX: all experts of a layer in three matrices; w2 is kept (in, out). Sizes are in ffn_config.
#include "checkpoint/arch.h"

namespace moe {
namespace {

std::optional<FamilyLayer> dbrx_layer(ModelConfig& config, int32_t layer) {
  LayerSpec spec;
  spec.layer = layer;
  spec.router.num_experts = static_cast<int32_t>(config.count({"ffn_config.moe_num_experts"}));
  spec.router.top_k = static_cast<int32_t>(config.count({"ffn_config.moe_top_k"}));
  spec.expert.hidden = config.count({"d_model"});
  spec.expert.intermediate = config.count({"ffn_config.ffn_hidden_size"});
  spec.expert.activation = config.activation({"ffn_config.ffn_act_fn.name"}, Activation::silu);
  const float power = config.number_or({"ffn_config.moe_normalize_expert_weights"}, 0);
  if (power > 0) {
    spec.router.normalize = Normalize::p_norm;
    spec.router.norm_power = power;
  }
  return FamilyLayer{spec, {}};
}

int64_t dbrx_layers(ModelConfig& config) { return config.count({"n_layers"}); }

constexpr TensorRule kRules[] = {
    {WeightKind::router_weight, "ffn.router.layer.weight", "c h"},
    {WeightKind::gate, "ffn.experts.mlp.w1", "(e i) h"},
    {WeightKind::up, "ffn.experts.mlp.v1", "(e i) h"},
    {WeightKind::down, "ffn.experts.mlp.w2", "(e i) h"},
};

constexpr Family kRows[] = {
    {.model_type = "dbrx",
     .layer = dbrx_layer,
     .rules = kRules,
     .layers = dbrx_layers,
     .prefix = "transformer.blocks.",
     .architecture = "DbrxForCausalLM",
     .synthetic = R"("d_model": $hidden, "n_layers": $layers, "n_heads": 1,
  "ffn_config": {"moe_num_experts": $experts, "moe_top_k": $top_k,
    "ffn_hidden_size": $intermediate, "moe_normalize_expert_weights": 1,
    "ffn_act_fn": {"name": "silu"}},
  "attn_config": {"clip_qkv": 8, "kv_n_heads": 1, "rope_theta": 500000})"},
};

}  // namespace

std::span<const Family> dbrx_rows() { return kRows; }

}  // namespace moe
