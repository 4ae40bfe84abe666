// Granite: experts fused in input_linear (gate first) and output_linear. The block is
// block_sparse_moe alone: the dense shared_mlp that some layers add to it is the host's.
#include "checkpoint/arch.h"

namespace moe {
namespace {

std::optional<FamilyLayer> granite_layer(ModelConfig& config, int32_t layer) {
  if (config.count_or({"num_local_experts"}, 0) == 0) return std::nullopt;  // a dense hybrid
  LayerSpec spec =
      common_layer(config, layer, config.count({"intermediate_size"}), {"num_local_experts"});
  spec.router.scoring = Scoring::identity;
  spec.router.weighting = Weighting::softmax_of_selected_logits;
  return FamilyLayer{spec, {}};
}

constexpr TensorRule kRules[] = {
    {WeightKind::router_weight, "block_sparse_moe.router.layer.weight", "c h"},
    {WeightKind::gate, "block_sparse_moe.input_linear.weight", "e (g i) h"},
    {WeightKind::down, "block_sparse_moe.output_linear.weight", "e h i"},
};

constexpr std::string_view kSizes =
    R"("num_local_experts": $experts, "intermediate_size": $intermediate)";
constexpr std::string_view kShared = R"("num_local_experts": $experts,
  "intermediate_size": $intermediate, "shared_intermediate_size": $intermediate)";

constexpr Family kRows[] = {
    {.model_type = "granitemoe",
     .layer = granite_layer,
     .rules = kRules,
     .architecture = "GraniteMoeForCausalLM",
     .synthetic = kSizes},
    {.model_type = "granitemoeshared",
     .layer = granite_layer,
     .rules = kRules,
     .architecture = "GraniteMoeSharedForCausalLM",
     .synthetic = kShared},
    {.model_type = "granitemoehybrid",
     .layer = granite_layer,
     .rules = kRules,
     .architecture = "GraniteMoeHybridForCausalLM",
     .synthetic = kShared},
};

}  // namespace

std::span<const Family> granite_rows() { return kRows; }

}  // namespace moe
