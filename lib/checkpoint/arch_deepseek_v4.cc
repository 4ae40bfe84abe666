// DeepSeek-V4: scores are sqrt(softplus(logit)); the first layers look their experts up by token
// id. Published names have no "model."; transformers uses DeepSeek-V3's.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

bool looked_up(ModelConfig& config, int32_t layer) {
  if (const auto type = config.word({"mlp_layer_types"}, layer)) return *type == "hash_moe";
  return layer < config.count_or({"num_hash_layers"}, 0);
}

std::optional<FamilyLayer> deepseek_v4_layer(ModelConfig& config, int32_t layer) {
  const int64_t intermediate = config.count({"moe_intermediate_size"});
  LayerSpec spec =
      common_layer(config, layer, intermediate, {"n_routed_experts", "num_local_experts"});
  if (config.number_or({"swiglu_limit"}, 0) > 0)
    config.unsupported("experts that clamp before SwiGLU (swiglu_limit)");
  add_shared(&spec, config.count_or({"n_shared_experts"}, 1) * intermediate);
  const std::string_view function = config.text_or({"scoring_func"}, "sqrtsoftplus");
  if (function != "sqrtsoftplus") config.refuse("scoring_func", function, "sqrtsoftplus");
  spec.router.scoring = Scoring::sqrt_softplus;
  sum_to_one(&spec.router, 1e-20f);
  spec.router.scaling = config.number_or({"routed_scaling_factor"}, 1);
  if (!looked_up(config, layer)) return FamilyLayer{spec, {WeightKind::router_selection_bias}};
  spec.router.selection = Selection::token_lookup;
  return FamilyLayer{spec, {WeightKind::router_token_experts}};
}

constexpr TensorRule kPublished[] = {
    {WeightKind::router_weight, "ffn.gate.weight", "c h"},
    {WeightKind::router_selection_bias, "ffn.gate.bias", "c"},
    {WeightKind::router_token_experts, "ffn.gate.tid2eid", "v k"},
    {WeightKind::gate, "ffn.experts.{e}.w1.weight", "i h"},
    {WeightKind::up, "ffn.experts.{e}.w3.weight", "i h"},
    {WeightKind::down, "ffn.experts.{e}.w2.weight", "h i"},
    {WeightKind::gate, "ffn.shared_experts.w1.weight", "i h", Owner::shared},
    {WeightKind::up, "ffn.shared_experts.w3.weight", "i h", Owner::shared},
    {WeightKind::down, "ffn.shared_experts.w2.weight", "h i", Owner::shared},
};
constexpr TensorRule kTransformers[] = {
    {WeightKind::router_weight, "mlp.gate.weight", "c h"},
    {WeightKind::router_selection_bias, "mlp.gate.e_score_correction_bias", "c"},
    {WeightKind::router_token_experts, "mlp.gate.tid2eid", "v k"},
};
constexpr auto kRules =
    join(kPublished, kTransformers, kProjExperts, kFusedExperts, kSharedExperts);

constexpr Family kRows[] = {
    {.model_type = "deepseek_v4",
     .layer = deepseek_v4_layer,
     .rules = kRules,
     .prefix = "layers.",
     .architecture = "DeepseekV4ForCausalLM",
     .synthetic = R"("n_routed_experts": $experts, "moe_intermediate_size": $intermediate,
  "n_shared_experts": $shared_experts, "scoring_func": "sqrtsoftplus", "num_hash_layers": 1,
  "routed_scaling_factor": 1.5)"},
};

}  // namespace

std::span<const Family> deepseek_v4_rows() { return kRows; }

}  // namespace moe
