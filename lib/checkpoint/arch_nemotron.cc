// Nemotron-H: a layer is one mixer, here a MoE one, with relu2 experts that have no gate
// projection.
#include "checkpoint/arch.h"

namespace moe {
namespace {

bool sparse(ModelConfig& config, int32_t layer) {
  if (const auto type = config.word({"layers_block_type"}, layer)) return *type == "moe";
  const std::string_view pattern = config.text_or({"hybrid_override_pattern"}, "");
  return layer < static_cast<int64_t>(pattern.size()) && pattern[static_cast<size_t>(layer)] == 'E';
}

std::optional<FamilyLayer> nemotron_layer(ModelConfig& config, int32_t layer) {
  if (!sparse(config, layer)) return std::nullopt;
  if (config.has({"moe_latent_size"}))
    config.unsupported("experts that work in a latent space (moe_latent_size)");
  LayerSpec spec =
      common_layer(config, layer, config.count({"moe_intermediate_size"}), {"n_routed_experts"});
  spec.expert.activation = config.activation({"mlp_hidden_act"}, Activation::relu2);
  spec.expert.gated = false;
  add_shared(&spec, config.count_or({"n_shared_experts"}, 0) *
                        config.count_or({"moe_shared_expert_intermediate_size"}, 0));
  sigmoid_groups(config, &spec.router, {"n_group"}, {"topk_group"});
  if (config.flag_or({"norm_topk_prob"}, true)) sum_to_one(&spec.router, 1e-20f);
  spec.router.scaling = config.number_or({"routed_scaling_factor"}, 1);
  return FamilyLayer{spec, {WeightKind::router_selection_bias}};
}

int64_t nemotron_layers(ModelConfig& config) {
  const auto length = config.length({"layers_block_type", "hybrid_override_pattern"});
  return length ? *length : config.count({"num_hidden_layers"});
}

constexpr TensorRule kRules[] = {
    {WeightKind::router_weight, "mixer.gate.weight", "c h"},
    {WeightKind::router_selection_bias, "mixer.gate.e_score_correction_bias", "c"},
    {WeightKind::up, "mixer.experts.{e}.up_proj.weight", "i h"},
    {WeightKind::down, "mixer.experts.{e}.down_proj.weight", "h i"},
    {WeightKind::up, "mixer.shared_experts.up_proj.weight", "i h", Owner::shared},
    {WeightKind::down, "mixer.shared_experts.down_proj.weight", "h i", Owner::shared},
};

constexpr Family kRows[] = {
    {.model_type = "nemotron_h",
     .layer = nemotron_layer,
     .rules = kRules,
     .layers = nemotron_layers,
     .prefix = "backbone.layers.",
     .architecture = "NemotronHForCausalLM",
     .synthetic = R"("n_routed_experts": $experts, "moe_intermediate_size": $intermediate,
  "intermediate_size": $intermediate, "n_shared_experts": 1,
  "moe_shared_expert_intermediate_size": $shared, "mlp_hidden_act": "relu2",
  "norm_topk_prob": true, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5,
  "layers_block_type": $each("moe"))"},
};

}  // namespace

std::span<const Family> nemotron_rows() { return kRows; }

}  // namespace moe
