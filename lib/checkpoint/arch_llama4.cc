// Llama 4: experts fused in (in, out) order, the weight applied to their input.
#include "checkpoint/arch.h"

namespace moe {
namespace {

bool sparse(ModelConfig& config, int32_t layer) {
  if (const auto listed = config.lists({"moe_layers"}, layer)) return *listed;
  const int64_t step = config.count_or({"interleave_moe_layer_step"}, 1);
  return step > 0 && (layer + 1) % step == 0;
}

std::optional<FamilyLayer> llama4_layer(ModelConfig& config, int32_t layer) {
  if (!sparse(config, layer)) return std::nullopt;
  const int64_t intermediate = config.count({"intermediate_size"});
  LayerSpec spec = common_layer(config, layer, intermediate, {"num_local_experts"});
  add_shared(&spec, intermediate);
  spec.router.scoring = Scoring::identity;
  spec.router.weighting = Weighting::sigmoid_of_logit;
  spec.router.weight_on_input = true;
  return FamilyLayer{spec, {}};
}

constexpr TensorRule kRules[] = {
    {WeightKind::router_weight, "feed_forward.router.weight", "c h"},
    {WeightKind::gate, "feed_forward.experts.gate_up_proj", "e h (g i)"},
    {WeightKind::down, "feed_forward.experts.down_proj", "e i h"},
    {WeightKind::gate, "feed_forward.shared_expert.gate_proj.weight", "i h", Owner::shared},
    {WeightKind::up, "feed_forward.shared_expert.up_proj.weight", "i h", Owner::shared},
    {WeightKind::down, "feed_forward.shared_expert.down_proj.weight", "h i", Owner::shared},
};

constexpr Family kRows[] = {
    {.model_type = "llama4_text",
     .layer = llama4_layer,
     .rules = kRules,
     .architecture = "Llama4ForCausalLM",
     .synthetic = R"("num_local_experts": $experts, "intermediate_size": $intermediate,
  "intermediate_size_mlp": $intermediate, "interleave_moe_layer_step": 1,
  "layer_types": $each("full_attention"))"},
    {.model_type = "llama4", .layer = llama4_layer, .rules = kRules},
};

}  // namespace

std::span<const Family> llama4_rows() { return kRows; }

}  // namespace moe
