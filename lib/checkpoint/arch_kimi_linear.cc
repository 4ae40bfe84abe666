// Kimi-Linear: Mixtral's names for the experts, DeepSeek's rule for the router.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

std::optional<FamilyLayer> kimi_linear_layer(ModelConfig& config, int32_t layer) {
  const int64_t frequency = std::max<int64_t>(1, config.count_or({"moe_layer_freq"}, 1));
  if (layer < config.count_or({"first_k_dense_replace"}, 0) || layer % frequency != 0)
    return std::nullopt;
  const int64_t intermediate = config.count({"moe_intermediate_size"});
  LayerSpec spec = common_layer(config, layer, intermediate, {"num_experts"},
                                {"num_experts_per_token", "num_experts_per_tok"});
  add_shared(&spec, config.count_or({"num_shared_experts"}, 0) * intermediate);
  const std::string_view function = config.text_or({"moe_router_activation_func"}, "sigmoid");
  if (function != "sigmoid" && function != "softmax")
    config.refuse("moe_router_activation_func", function, "sigmoid or softmax");
  if (config.flag_or({"use_grouped_topk"}, true))
    sigmoid_groups(config, &spec.router, {"num_expert_group"}, {"topk_group"});
  spec.router.scoring = function == "sigmoid" ? Scoring::sigmoid : Scoring::softmax;
  if (config.flag_or({"moe_renormalize"}, true)) sum_to_one(&spec.router, 1e-20f);
  spec.router.scaling = config.number_or({"routed_scaling_factor"}, 1);
  return FamilyLayer{spec, {WeightKind::router_selection_bias}};
}

constexpr TensorRule kExtra[] = {
    {WeightKind::router_selection_bias, "block_sparse_moe.gate.e_score_correction_bias", "c"},
    {WeightKind::gate, "block_sparse_moe.shared_experts.gate_proj.weight", "i h", Owner::shared},
    {WeightKind::up, "block_sparse_moe.shared_experts.up_proj.weight", "i h", Owner::shared},
    {WeightKind::down, "block_sparse_moe.shared_experts.down_proj.weight", "h i", Owner::shared},
};
constexpr auto kRules = join(kBlockSparseMoe, kExtra);

constexpr Family kRows[] = {
    {.model_type = "kimi_linear",
     .layer = kimi_linear_layer,
     .rules = kRules,
     .architecture = "KimiLinearForCausalLM",
     .synthetic = R"("num_experts": $experts, "num_experts_per_token": $top_k,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "num_shared_experts": $shared_experts, "moe_router_activation_func": "sigmoid",
  "moe_renormalize": true, "num_expert_group": 1, "topk_group": 1,
  "routed_scaling_factor": 2.446, "first_k_dense_replace": 0)"},
};

}  // namespace

std::span<const Family> kimi_linear_rows() { return kRows; }

}  // namespace moe
