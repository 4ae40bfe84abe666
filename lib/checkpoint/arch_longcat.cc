// LongCat-Flash: experts without weights ("zero experts") pass the row through. The dense networks
// mlps.{0,1} beside the block are the host's.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

std::optional<FamilyLayer> longcat_layer(ModelConfig& config, int32_t layer) {
  LayerSpec spec = common_layer(config, layer, config.count({"expert_ffn_hidden_size"}),
                                {"n_routed_experts"}, {"moe_topk"});
  spec.router.num_zero_experts = static_cast<int32_t>(config.count_or({"zero_expert_num"}, 0));
  const std::string_view zero = config.text_or({"zero_expert_type"}, "identity");
  if (zero != "identity") config.refuse("zero_expert_type", zero, "identity");
  spec.router.scaling = config.number_or({"routed_scaling_factor"}, 1);
  if (config.flag_or({"norm_topk_prob"}, false)) sum_to_one(&spec.router, 1e-20f);
  FamilyLayer result{spec, {WeightKind::router_selection_bias}};
  if (config.flag_or({"router_bias"}, false)) result.router.push_back(WeightKind::router_bias);
  return result;
}

int64_t longcat_layers(ModelConfig& config) {
  return config.count({"num_layers", "num_hidden_layers"});
}

constexpr TensorRule kRouter[] = {
    {WeightKind::router_weight, "mlp.router.classifier.weight", "c h"},
    {WeightKind::router_bias, "mlp.router.classifier.bias", "c"},
    {WeightKind::router_selection_bias, "mlp.router.e_score_correction_bias", "c"},
};
constexpr auto kRules = join(kRouter, kProjExperts, kFusedExperts);

constexpr Family kRows[] = {
    {.model_type = "longcat_flash",
     .layer = longcat_layer,
     .rules = kRules,
     .layers = longcat_layers,
     .architecture = "LongcatFlashForCausalLM",
     .synthetic = R"("n_routed_experts": $experts, "moe_topk": $top_k, "num_layers": $layers,
  "expert_ffn_hidden_size": $intermediate, "ffn_hidden_size": $intermediate,
  "zero_expert_num": $half_experts, "zero_expert_type": "identity",
  "routed_scaling_factor": 6.0)"},
};

}  // namespace

std::span<const Family> longcat_rows() { return kRows; }

}  // namespace moe
