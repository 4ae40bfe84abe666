// Jamba: experts in every expert_layer_period-th layer; raw softmax weights.
#include "checkpoint/arch.h"

namespace moe {
namespace {

std::optional<FamilyLayer> jamba_layer(ModelConfig& config, int32_t layer) {
  const int64_t period = std::max<int64_t>(1, config.count_or({"expert_layer_period"}, 2));
  if (layer % period != config.count_or({"expert_layer_offset"}, 1)) return std::nullopt;
  return FamilyLayer{
      common_layer(config, layer, config.count({"intermediate_size"}), {"num_experts"}), {}};
}

constexpr TensorRule kRules[] = {
    {WeightKind::router_weight, "feed_forward.router.weight", "c h"},
    {WeightKind::gate, "feed_forward.experts.{e}.gate_proj.weight", "i h"},
    {WeightKind::up, "feed_forward.experts.{e}.up_proj.weight", "i h"},
    {WeightKind::down, "feed_forward.experts.{e}.down_proj.weight", "h i"},
};

constexpr Family kRows[] = {
    {.model_type = "jamba",
     .layer = jamba_layer,
     .rules = kRules,
     .architecture = "JambaForCausalLM",
     .synthetic = R"("num_experts": $experts, "intermediate_size": $intermediate,
  "expert_layer_period": 1, "expert_layer_offset": 0, "attn_layer_period": 1,
  "attn_layer_offset": 0)"},
};

}  // namespace

std::span<const Family> jamba_rows() { return kRows; }

}  // namespace moe
