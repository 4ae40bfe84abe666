// ERNIE 4.5: softmax scores, a bias for selection, weights divided by at least moe_norm_min. The
// vision-language models keep two of everything, text first: only text is routed here.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

bool sparse(ModelConfig& config, int32_t layer) {
  const int64_t interval = std::max<int64_t>(1, config.count_or({"moe_layer_interval"}, 1));
  const int64_t end = config.whole_or({"moe_layer_end_index"}, -1);
  return (layer + 1) % interval == 0 && layer >= config.count_or({"moe_layer_start_index"}, 1) &&
         (end < 0 || layer <= end);
}

std::optional<FamilyLayer> ernie_layer(ModelConfig& config, int32_t layer) {
  if (!sparse(config, layer)) return std::nullopt;
  const int64_t intermediate = config.count({"moe_intermediate_size"});
  LayerSpec spec = common_layer(config, layer, intermediate, {"moe_num_experts", "num_experts"},
                                {"moe_k", "num_experts_per_tok"});
  add_shared(&spec, config.count_or({"moe_num_shared_experts"}, 0) * intermediate);
  spec.router.normalize = Normalize::sum_at_least_epsilon;
  spec.router.epsilon = config.number_or({"moe_norm_min"}, 1e-12f);
  FamilyLayer result{spec, {}};
  if (config.flag_or({"moe_use_aux_free"}, true))
    result.router.push_back(WeightKind::router_selection_bias);
  return result;
}

constexpr TensorRule kRouter[] = {
    {WeightKind::router_weight, "mlp.gate.weight", "c h"},
    {WeightKind::router_weight, "mlp.gate.weight", "h c"},  // as the vision-language models have it
    {WeightKind::router_selection_bias, "mlp.moe_statics.e_score_correction_bias", "1 c"},
    {WeightKind::router_selection_bias, "mlp.moe_statics.e_score_correction_bias", "2 c"},
    {WeightKind::router_selection_bias, "mlp.moe_statics.e_score_correction_bias", "c"},
};
constexpr auto kRules = join(kRouter, kProjExperts, kFusedExperts, kSharedExperts);

constexpr Family kRows[] = {
    {.model_type = "ernie4_5_moe",
     .layer = ernie_layer,
     .rules = kRules,
     .architecture = "Ernie4_5_MoeForCausalLM",
     .synthetic = R"("moe_num_experts": $experts, "moe_k": $top_k,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "moe_num_shared_experts": $shared_experts, "moe_layer_start_index": 0,
  "moe_layer_end_index": -1, "moe_layer_interval": 1, "moe_norm_min": 1e-12)",
     .synthetic_shared = 2},
    {.model_type = "ernie4_5_moe_vl", .layer = ernie_layer, .rules = kRules, .more_experts = true},
    {.model_type = "ernie4_5_vl_moe", .layer = ernie_layer, .rules = kRules, .more_experts = true},
};

}  // namespace

std::span<const Family> ernie_rows() { return kRows; }

}  // namespace moe
