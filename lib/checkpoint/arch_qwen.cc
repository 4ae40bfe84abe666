// Qwen's names: mlp.gate, mlp.experts.{e}.gate_proj and so on, and a gated mlp.shared_expert.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

bool sparse(ModelConfig& config, int32_t layer) {
  if (config.lists({"mlp_only_layers"}, layer).value_or(false)) return false;
  return (layer + 1) % config.count_or({"decoder_sparse_step"}, 1) == 0;
}

std::optional<FamilyLayer> qwen_layer(ModelConfig& config, int32_t layer) {
  if (!sparse(config, layer)) return std::nullopt;
  LayerSpec spec = common_layer(config, layer, config.count({"moe_intermediate_size"}),
                                {"num_experts", "num_local_experts"});
  if (config.flag_or({"norm_topk_prob"}, false)) sum_to_one(&spec.router);
  return FamilyLayer{spec, {}};
}

constexpr auto kRules = join(kMlpGate, kProjExperts, kFusedExperts);

constexpr Family kRows[] = {
    {.model_type = "qwen3_moe",
     .layer = qwen_layer,
     .rules = kRules,
     .architecture = "Qwen3MoeForCausalLM",
     .synthetic = R"("num_experts": $experts, "moe_intermediate_size": $intermediate,
  "intermediate_size": $intermediate, "norm_topk_prob": true, "decoder_sparse_step": 1,
  "mlp_only_layers": [])"},
};

}  // namespace

std::span<const Family> qwen_rows() { return kRows; }

}  // namespace moe
