// Hunyuan: sizes may differ by layer; one shared_mlp beside the experts.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

std::optional<FamilyLayer> hunyuan_layer(ModelConfig& config, int32_t layer) {
  if (layer < config.count_or({"moe_layer_num_skipped"}, 0)) return std::nullopt;
  const int64_t width = config.count({"intermediate_size"});
  LayerSpec spec =
      common_layer(config, layer, config.count_or({"moe_intermediate_size"}, width, layer),
                   {"num_experts"}, {"moe_topk"});
  spec.router.num_experts = static_cast<int32_t>(config.count({"num_experts"}, layer));
  spec.router.top_k = static_cast<int32_t>(config.count({"moe_topk"}, layer));
  if (config.flag_or({"use_mixed_mlp_moe"}, true))
    add_shared(&spec, width * config.count_or({"num_shared_expert"}, 1, layer));
  sum_to_one(&spec.router);
  return FamilyLayer{spec, {}};
}

// Hunyuan-Large chooses one expert, whose weight is not normalised.
std::optional<FamilyLayer> hunyuan_large_layer(ModelConfig& config, int32_t layer) {
  auto result = hunyuan_layer(config, layer);
  if (result && result->spec.router.top_k == 1) result->spec.router.normalize = Normalize::none;
  return result;
}

std::optional<FamilyLayer> hy_v3_layer(ModelConfig& config, int32_t layer) {
  const bool late = layer >= config.count_or({"first_k_dense_replace"}, 1);
  if (!sparse_type(config, layer, late)) return std::nullopt;
  const int64_t intermediate = config.count({"moe_intermediate_size", "expert_hidden_dim"});
  LayerSpec spec = common_layer(config, layer, intermediate, {"num_experts"});
  add_shared(&spec, config.count_or({"num_shared_experts"}, 1) * intermediate);
  spec.router.scoring = Scoring::sigmoid;
  spec.router.scaling = config.number_or({"router_scaling_factor"}, 2.826f);
  if (config.flag_or({"route_norm"}, true)) sum_to_one(&spec.router, 1e-20f);
  return FamilyLayer{spec, {WeightKind::router_selection_bias}};
}

constexpr TensorRule kSharedMlp[] = {
    {WeightKind::gate, "mlp.shared_mlp.gate_proj.weight", "i h", Owner::shared},
    {WeightKind::up, "mlp.shared_mlp.up_proj.weight", "i h", Owner::shared},
    {WeightKind::down, "mlp.shared_mlp.down_proj.weight", "h i", Owner::shared},
};
constexpr TensorRule kV1Router[] = {
    {WeightKind::router_weight, "mlp.gate.wg.weight", "c h"},
};
constexpr TensorRule kV3Router[] = {
    {WeightKind::router_weight, "mlp.router.gate.weight", "c h"},
    {WeightKind::router_selection_bias, "mlp.expert_bias", "c"},
    // As transformers names them in memory.
    {WeightKind::router_weight, "mlp.gate.weight", "c h"},
    {WeightKind::router_selection_bias, "mlp.e_score_correction_bias", "c"},
};
constexpr auto kV1 = join(kV1Router, kProjExperts, kFusedExperts, kSharedMlp);
constexpr auto kV3 = join(kV3Router, kProjExperts, kFusedExperts, kSharedMlp, kSharedExperts);

constexpr Family kRows[] = {
    {.model_type = "hunyuan_v1_moe",
     .layer = hunyuan_layer,
     .rules = kV1,
     .architecture = "HunYuanMoEV1ForCausalLM",
     .synthetic = R"("num_experts": $experts, "moe_topk": $top_k,
  "intermediate_size": $intermediate, "use_mixed_mlp_moe": true, "num_shared_expert": 1)"},
    {.model_type = "hunyuan", .layer = hunyuan_large_layer, .rules = kV1},
    {.model_type = "hy_v3",
     .layer = hy_v3_layer,
     .rules = kV3,
     .architecture = "HYV3ForCausalLM",
     .synthetic = R"("num_experts": $experts, "moe_intermediate_size": $intermediate,
  "intermediate_size": $intermediate, "num_shared_experts": $shared_experts,
  "router_scaling_factor": 2.826, "mlp_layer_types": $each("sparse"))"},
};

}  // namespace

std::span<const Family> hunyuan_rows() { return kRows; }

}  // namespace moe
