// LFM2-MoE: sigmoid scores and, where use_expert_bias says so, a bias for selection.
#include "checkpoint/arch.h"

namespace moe {
namespace {

std::optional<FamilyLayer> lfm2_layer(ModelConfig& config, int32_t layer) {
  if (layer < config.count_or({"num_dense_layers"}, 2)) return std::nullopt;
  LayerSpec spec =
      common_layer(config, layer, config.count({"moe_intermediate_size"}), {"num_experts"});
  spec.router.scoring = Scoring::sigmoid;
  if (config.flag_or({"norm_topk_prob"}, true)) sum_to_one(&spec.router, 1e-6f);
  spec.router.scaling = config.number_or({"routed_scaling_factor"}, 1);
  FamilyLayer result{spec, {}};
  if (config.flag_or({"use_expert_bias"}, true))
    result.router.push_back(WeightKind::router_selection_bias);
  return result;
}

constexpr TensorRule kRules[] = {
    {WeightKind::router_weight, "feed_forward.gate.weight", "c h"},
    {WeightKind::router_selection_bias, "feed_forward.expert_bias", "c"},
    {WeightKind::gate, "feed_forward.experts.{e}.w1.weight", "i h"},
    {WeightKind::up, "feed_forward.experts.{e}.w3.weight", "i h"},
    {WeightKind::down, "feed_forward.experts.{e}.w2.weight", "h i"},
};

constexpr Family kRows[] = {
    {.model_type = "lfm2_moe",
     .layer = lfm2_layer,
     .rules = kRules,
     .architecture = "Lfm2MoeForCausalLM",
     .synthetic = R"("num_experts": $experts, "moe_intermediate_size": $intermediate,
  "intermediate_size": $intermediate, "num_dense_layers": 0, "use_expert_bias": true,
  "norm_topk_prob": true, "layer_types": $each("full_attention"))"},
};

}  // namespace

std::span<const Family> lfm2_rows() { return kRows; }

}  // namespace moe
