// Mixtral's names: block_sparse_moe.gate, and w1 (gate), w3 (up), w2 (down) of each expert.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

LayerSpec base_layer(ModelConfig& config, int32_t layer) {
  return common_layer(config, layer, config.count({"intermediate_size"}),
                      {"num_local_experts", "num_experts"});
}

// Also MiniMax-Text-01. There is no flag: the weights of the chosen always sum to one.
std::optional<FamilyLayer> mixtral_layer(ModelConfig& config, int32_t layer) {
  LayerSpec spec = base_layer(config, layer);
  sum_to_one(&spec.router);
  return FamilyLayer{spec, {}};
}

std::optional<FamilyLayer> phimoe_layer(ModelConfig& config, int32_t layer) {
  LayerSpec spec = base_layer(config, layer);
  spec.router.selection = Selection::sparsemixer;
  spec.router.sparsemixer_epsilon = config.number_or({"router_jitter_noise"}, 0.01f);
  return FamilyLayer{spec, {}};
}

std::optional<FamilyLayer> minimax_m2_layer(ModelConfig& config, int32_t layer) {
  LayerSpec spec = base_layer(config, layer);
  const std::string_view scoring = config.text_or({"scoring_func"}, "sigmoid");
  if (scoring != "sigmoid") config.refuse("scoring_func", scoring, "sigmoid");
  spec.router.scoring = Scoring::sigmoid;
  sum_to_one(&spec.router);
  FamilyLayer result{spec, {}};
  if (config.flag_or({"use_routing_bias"}, true))
    result.router.push_back(WeightKind::router_selection_bias);
  return result;
}

// Snowflake Arctic. The dense residual network beside the block is the host's.
std::optional<FamilyLayer> arctic_layer(ModelConfig& config, int32_t layer) {
  if ((layer + 1) % std::max<int64_t>(1, config.count_or({"moe_layer_frequency"}, 2)) != 0)
    return std::nullopt;
  LayerSpec spec = base_layer(config, layer);
  if (spec.router.top_k > 1) sum_to_one(&spec.router);
  return FamilyLayer{spec, {}};
}

constexpr TensorRule kCorrectionBias[] = {
    {WeightKind::router_selection_bias, "block_sparse_moe.e_score_correction_bias", "c"},
};
constexpr auto kMiniMaxM2 = join(kBlockSparseMoe, kCorrectionBias);

constexpr std::string_view kSizes =
    R"("num_local_experts": $experts, "intermediate_size": $intermediate)";

constexpr Family kRows[] = {
    {.model_type = "mixtral",
     .layer = mixtral_layer,
     .rules = kBlockSparseMoe,
     .architecture = "MixtralForCausalLM",
     .synthetic = kSizes},
    {.model_type = "minimax",
     .layer = mixtral_layer,
     .rules = kBlockSparseMoe,
     .architecture = "MiniMaxForCausalLM",
     .synthetic = kSizes},
    {.model_type = "minimax_text_01",
     .layer = mixtral_layer,
     .rules = kBlockSparseMoe,
     .architecture = "MiniMaxText01ForCausalLM"},
    {.model_type = "minimax_m2",
     .layer = minimax_m2_layer,
     .rules = kMiniMaxM2,
     .architecture = "MiniMaxM2ForCausalLM",
     .synthetic = kSizes},
    {.model_type = "phimoe",
     .layer = phimoe_layer,
     .rules = kBlockSparseMoe,
     .architecture = "PhimoeForCausalLM",
     .synthetic = R"("num_local_experts": $experts, "intermediate_size": $intermediate,
  "router_jitter_noise": 0.01, "input_jitter_noise": 0.01)"},
    {.model_type = "arctic",
     .layer = arctic_layer,
     .rules = kBlockSparseMoe,
     .architecture = "ArcticForCausalLM"},
};

}  // namespace

std::span<const Family> mixtral_rows() { return kRows; }

}  // namespace moe
