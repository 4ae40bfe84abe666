// Step3 and Step3.5: one tensor per projection for all experts of a layer.
#include <charconv>

#include "checkpoint/arch.h"

namespace moe {
namespace {

// moe_layers_enum is a list, or its text: "4,5,6". Absent: all layers but the first.
bool sparse(ModelConfig& config, int32_t layer) {
  if (const auto listed = config.lists({"moe_layers_enum"}, layer)) return *listed;
  std::string_view text = config.text_or({"moe_layers_enum"}, "");
  if (text.empty()) return layer > 0;
  while (!text.empty()) {
    int32_t index = -1;
    std::from_chars(text.data(), text.data() + text.size(), index);
    if (index == layer) return true;
    const size_t comma = text.find(',');
    text = comma == std::string_view::npos ? "" : text.substr(comma + 1);
    while (!text.empty() && text[0] == ' ') text.remove_prefix(1);
  }
  return false;
}

LayerSpec base_layer(ModelConfig& config, int32_t layer, bool norm_default) {
  LayerSpec spec = common_layer(config, layer, config.count({"moe_intermediate_size"}),
                                {"moe_num_experts"}, {"moe_top_k"});
  add_shared(&spec, config.count({"share_expert_dim", "share_expert_dims"}));
  if (config.flag_or({"norm_expert_weight"}, norm_default)) sum_to_one(&spec.router);
  return spec;
}

std::optional<FamilyLayer> step3_layer(ModelConfig& config, int32_t layer) {
  if (!sparse(config, layer)) return std::nullopt;
  return FamilyLayer{base_layer(config, layer, false), {}};
}

void limit(ModelConfig& config, ModelConfig::Keys key, int32_t layer, ExpertSpec* expert) {
  const float limit = config.number_or(key, 0, layer);
  if (limit <= 0) return;
  expert->activation = Activation::swiglu_step;
  expert->limit = limit;
}

std::optional<FamilyLayer> step3p5_layer(ModelConfig& config, int32_t layer) {
  if (!sparse(config, layer)) return std::nullopt;
  FamilyLayer result{base_layer(config, layer, true), {}};
  LayerSpec& spec = result.spec;
  const std::string_view function = config.text_or({"moe_router_activation"}, "softmax");
  if (function != "sigmoid" && function != "softmax")
    config.refuse("moe_router_activation", function, "sigmoid or softmax");
  spec.router.scoring = function == "sigmoid" ? Scoring::sigmoid : Scoring::softmax;
  spec.router.scaling = config.number_or({"moe_router_scaling_factor"}, 1);
  limit(config, {"swiglu_limits"}, layer, &spec.expert);
  limit(config, {"swiglu_limits_shared"}, layer, &spec.shared->expert);
  if (config.flag_or({"use_moe_router_bias"}, false))
    result.router.push_back(WeightKind::router_selection_bias);
  return result;
}

constexpr TensorRule kRules[] = {
    {WeightKind::router_weight, "moe.gate.weight", "c h"},
    {WeightKind::router_selection_bias, "moe.router_bias", "c"},
    {WeightKind::gate, "moe.gate_proj.weight", "e i h"},
    {WeightKind::up, "moe.up_proj.weight", "e i h"},
    {WeightKind::down, "moe.down_proj.weight", "e h i"},
    {WeightKind::gate, "share_expert.gate_proj.weight", "i h", Owner::shared},
    {WeightKind::up, "share_expert.up_proj.weight", "i h", Owner::shared},
    {WeightKind::down, "share_expert.down_proj.weight", "h i", Owner::shared},
};

constexpr Family kRows[] = {
    {.model_type = "step3_text",
     .layer = step3_layer,
     .rules = kRules,
     .architecture = "Step3TextForCausalLM",
     .synthetic = R"("moe_num_experts": $experts, "moe_top_k": $top_k,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "share_expert_dim": $shared, "norm_expert_weight": true, "moe_layers_enum": $indices)"},
    {.model_type = "step3_vl", .layer = step3_layer, .rules = kRules},
    {.model_type = "step3p5",
     .layer = step3p5_layer,
     .rules = kRules,
     .architecture = "Step3p5ForCausalLM",
     .synthetic = R"("moe_num_experts": $experts, "moe_top_k": $top_k,
  "moe_intermediate_size": $intermediate, "intermediate_size": $intermediate,
  "share_expert_dim": $shared, "norm_expert_weight": true, "moe_layers_enum": $indices,
  "moe_router_activation": "sigmoid", "use_moe_router_bias": true,
  "moe_router_scaling_factor": 3.0)"},
};

}  // namespace

std::span<const Family> step_rows() { return kRows; }

}  // namespace moe
