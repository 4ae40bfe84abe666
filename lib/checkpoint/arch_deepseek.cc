// DeepSeek's names: mlp.gate with e_score_correction_bias, mlp.experts.{e}, mlp.shared_experts.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

constexpr TensorRule kCorrectionBias[] = {
    {WeightKind::router_selection_bias, "mlp.gate.e_score_correction_bias", "c"},
};

// The first layers are dense; a frequency above one makes others dense too.
bool sparse(ModelConfig& config, int32_t layer) {
  return layer >= config.count_or({"first_k_dense_replace"}, 0) &&
         layer % config.count_or({"moe_layer_freq"}, 1) == 0;
}

LayerSpec base_layer(ModelConfig& config, int32_t layer) {
  const int64_t intermediate = config.count({"moe_intermediate_size"});
  LayerSpec spec =
      common_layer(config, layer, intermediate, {"n_routed_experts", "num_local_experts"});
  add_shared(&spec, config.count_or({"n_shared_experts"}, 0) * intermediate);
  spec.router.scaling = config.number_or({"routed_scaling_factor"}, 1);
  return spec;
}

// Sigmoid scores, a bias for selection, groups by the sum of their two best, then scaled.
std::optional<FamilyLayer> deepseek_v3_layer(ModelConfig& config, int32_t layer) {
  if (!sparse(config, layer)) return std::nullopt;
  LayerSpec spec = base_layer(config, layer);
  spec.router.scoring = Scoring::sigmoid;
  spec.router.num_groups = static_cast<int32_t>(config.count_or({"n_group"}, 1));
  spec.router.top_groups = static_cast<int32_t>(config.count_or({"topk_group"}, 1));
  spec.router.group_score = GroupScore::top2_sum;
  if (config.flag_or({"norm_topk_prob"}, true)) sum_to_one(&spec.router, 1e-20f);
  return FamilyLayer{spec, {WeightKind::router_selection_bias}};
}

constexpr auto kV3Rules =
    join(kMlpGate, kCorrectionBias, kProjExperts, kFusedExperts, kSharedExperts);

constexpr Family kRows[] = {
    {.model_type = "deepseek_v3",
     .layer = deepseek_v3_layer,
     .rules = kV3Rules,
     .architecture = "DeepseekV3ForCausalLM",
     .synthetic = R"("n_routed_experts": $experts, "moe_intermediate_size": $intermediate,
  "intermediate_size": $intermediate, "n_shared_experts": $shared_experts, "n_group": $groups,
  "topk_group": $top_groups, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
  "norm_topk_prob": true, "routed_scaling_factor": 2.5, "first_k_dense_replace": 0,
  "moe_layer_freq": 1)"},
};

}  // namespace

std::span<const Family> deepseek_rows() { return kRows; }

}  // namespace moe
