// Cohere2-MoE: the mean of experts and shared experts, where shared_expert_combination_strategy
// says so.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

void set_routing(ModelConfig& config, RouterSpec* router) {
  const std::string_view function = config.text_or({"expert_selection_fn"}, "softmax");
  router->scoring = Scoring::identity;
  if (function == "softmax") {
    router->weighting = Weighting::softmax_of_selected_logits;
  } else if (function == "sigmoid") {
    router->weighting = Weighting::sigmoid_of_logit;
    if (config.flag_or({"norm_topk_prob"}, true)) sum_to_one(router);
  } else {
    config.refuse("expert_selection_fn", function, "softmax or sigmoid");
  }
}

std::optional<FamilyLayer> cohere2_layer(ModelConfig& config, int32_t layer) {
  const bool late = layer >= config.count_or({"first_k_dense_replace"}, 0);
  if (!sparse_type(config, layer, late)) return std::nullopt;
  const int64_t intermediate = config.count({"intermediate_size"});
  LayerSpec spec = common_layer(config, layer, intermediate, {"num_experts"});
  set_routing(config, &spec.router);
  add_shared(&spec, config.count_or({"num_shared_experts"}, 0) * intermediate);
  const std::string_view strategy =
      config.text_or({"shared_expert_combination_strategy"}, "average");
  if (strategy != "average" && strategy != "sum")
    config.refuse("shared_expert_combination_strategy", strategy, "average or sum");
  if (spec.shared && strategy == "average")
    spec.shared->routed_scale = spec.shared->shared_scale = 0.5f;
  return FamilyLayer{spec, {}};
}

constexpr auto kRules = join(kMlpGate, kProjExperts, kFusedExperts, kSharedExperts);

constexpr Family kRows[] = {
    {.model_type = "cohere2_moe",
     .layer = cohere2_layer,
     .rules = kRules,
     .architecture = "Cohere2MoeForCausalLM",
     .synthetic = R"("num_experts": $experts, "intermediate_size": $intermediate,
  "num_shared_experts": $shared_experts, "shared_expert_combination_strategy": "average",
  "expert_selection_fn": "softmax", "mlp_layer_types": $each("sparse"))"},
};

}  // namespace

std::span<const Family> cohere_rows() { return kRows; }

}  // namespace moe
