// Grok-1 and Grok-2: softcapped router logits, raw softmax weights, gelu. In Grok-2 a dense network
// stands beside the experts; the block is their sum divided by sqrt(2).
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

std::optional<FamilyLayer> grok_layer(ModelConfig& config, int32_t layer) {
  const int64_t width = config.count({"intermediate_size"});
  LayerSpec spec = common_layer(config, layer, config.count_or({"moe_intermediate_size"}, width),
                                {"num_local_experts", "num_experts"});
  spec.expert.activation = config.activation({"hidden_act"}, Activation::gelu);
  spec.router.softcap = config.number_or({"router_logit_softcapping"}, 30.0f);
  if (config.flag_or({"residual_moe"}, false)) {
    add_shared(&spec, width);
    spec.shared->routed_scale = spec.shared->shared_scale = 0.70710678f;
  }
  return FamilyLayer{spec, {}};
}

constexpr TensorRule kHpcAi[] = {
    // the port of Grok-1 to Hugging Face
    {WeightKind::router_weight, "moe_block.gate.weight", "c h"},
    {WeightKind::gate, "moe_block.experts.{e}.linear.weight", "i h"},
    {WeightKind::up, "moe_block.experts.{e}.linear_v.weight", "i h"},
    {WeightKind::down, "moe_block.experts.{e}.linear_1.weight", "h i"},
};
constexpr TensorRule kResidual[] = {
    {WeightKind::gate, "mlp.gate_proj.weight", "i h", Owner::shared},
    {WeightKind::up, "mlp.up_proj.weight", "i h", Owner::shared},
    {WeightKind::down, "mlp.down_proj.weight", "h i", Owner::shared},
};
constexpr auto kGrok1 = join(kHpcAi, kBlockSparseMoe, kResidual);
constexpr auto kGrok2 = join(kBlockSparseMoe, kHpcAi, kResidual);

constexpr std::string_view kSizes = R"("num_local_experts": $experts, "num_experts": $experts,
  "intermediate_size": $intermediate)";

constexpr Family kRows[] = {
    {.model_type = "grok-1",
     .layer = grok_layer,
     .rules = kGrok1,
     .architecture = "Grok1ModelForCausalLM",
     .synthetic = kSizes,
     .activation = "gelu"},
    {.model_type = "grok", .layer = grok_layer, .rules = kGrok1},
    {.model_type = "grok-2",
     .layer = grok_layer,
     .rules = kGrok2,
     .architecture = "Grok1ForCausalLM",  // Grok-2's own config.json says so
     .synthetic = R"("num_local_experts": $experts, "moe_intermediate_size": $intermediate,
  "intermediate_size": $shared, "residual_moe": true, "router_logit_softcapping": 30.0)",
     .synthetic_shared = 2,
     .activation = "gelu"},
};

}  // namespace

std::span<const Family> grok_rows() { return kRows; }

}  // namespace moe
