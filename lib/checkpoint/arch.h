// What the arch_*.cc files share.
#pragma once

#include <algorithm>

#include "checkpoint/family.h"
#include "checkpoint/model_config.h"

namespace moe {

// Each arch_*.cc defines one function of this type: the rows of its families.
using FamilyRows = std::span<const Family>();

// The part of a layer that most families spell alike: hidden_size, hidden_act, experts, choices.
inline LayerSpec common_layer(ModelConfig& config, int32_t layer, int64_t intermediate,
                              ModelConfig::Keys experts,
                              ModelConfig::Keys top_k = {"num_experts_per_tok"}) {
  LayerSpec spec;
  spec.layer = layer;
  spec.router.num_experts = static_cast<int32_t>(config.count(experts));
  spec.router.top_k = static_cast<int32_t>(config.count(top_k));
  spec.expert.hidden = config.count({"hidden_size"});
  spec.expert.intermediate = intermediate;
  spec.expert.activation = config.activation({"hidden_act"}, Activation::silu);
  return spec;
}

// Adds a shared expert like the routed ones, `intermediate` wide; none if that is 0.
inline void add_shared(LayerSpec* spec, int64_t intermediate, bool sigmoid_gate = false) {
  if (intermediate <= 0) return;
  spec->shared = SharedSpec{.expert = spec->expert, .sigmoid_gate = sigmoid_gate};
  spec->shared->expert.intermediate = intermediate;
}

// False where mlp_layer_types says that the layer is dense; `otherwise` where it says nothing.
inline bool sparse_type(ModelConfig& config, int32_t layer, bool otherwise) {
  const auto type = config.word({"mlp_layer_types"}, layer);
  return type ? *type == "sparse" : otherwise;
}

// DeepSeek-V3's rule: sigmoid scores, a bias for selection, groups by the sum of their two best.
inline void sigmoid_groups(ModelConfig& config, RouterSpec* router, ModelConfig::Keys groups,
                           ModelConfig::Keys top_groups) {
  router->scoring = Scoring::sigmoid;
  router->group_score = GroupScore::top2_sum;
  router->num_groups = static_cast<int32_t>(std::max<int64_t>(1, config.count_or(groups, 1)));
  router->top_groups = static_cast<int32_t>(std::max<int64_t>(1, config.count_or(top_groups, 1)));
  if (router->num_groups == 1) router->top_groups = 1;
}

inline void sum_to_one(RouterSpec* router, float epsilon = 0) {
  router->normalize = Normalize::sum_plus_epsilon;
  router->epsilon = epsilon;
}

}  // namespace moe
