// AFMoE (Arcee Trinity): sigmoid scores and a bias for selection.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

std::optional<FamilyLayer> afmoe_layer(ModelConfig& config, int32_t layer) {
  if (layer < config.count_or({"num_dense_layers"}, 1)) return std::nullopt;
  const int64_t intermediate = config.count({"moe_intermediate_size"});
  LayerSpec spec = common_layer(config, layer, intermediate, {"num_experts"});
  add_shared(&spec, config.count_or({"num_shared_experts"}, 0) * intermediate);
  spec.router.scoring = Scoring::sigmoid;
  spec.router.scaling = config.number_or({"route_scale"}, 1);
  if (config.flag_or({"route_norm"}, true)) sum_to_one(&spec.router, 1e-20f);
  return FamilyLayer{spec, {WeightKind::router_selection_bias}};
}

constexpr TensorRule kRouter[] = {
    {WeightKind::router_weight, "mlp.router.gate.weight", "c h"},
    {WeightKind::router_selection_bias, "mlp.expert_bias", "c"},
};
constexpr auto kRules = join(kRouter, kProjExperts, kFusedExperts, kSharedExperts);

constexpr Family kRows[] = {
    {.model_type = "afmoe",
     .layer = afmoe_layer,
     .rules = kRules,
     .architecture = "AfmoeForCausalLM",
     .synthetic = R"("num_experts": $experts, "moe_intermediate_size": $intermediate,
  "intermediate_size": $intermediate, "num_shared_experts": $shared_experts,
  "num_dense_layers": 0, "route_scale": 2.5, "route_norm": true)"},
};

}  // namespace

std::span<const Family> afmoe_rows() { return kRows; }

}  // namespace moe
