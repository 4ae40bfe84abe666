// Mixtral's names: block_sparse_moe.gate, and w1 (gate), w3 (up), w2 (down) of each expert.
#include "checkpoint/arch.h"
#include "checkpoint/names.h"

namespace moe {
namespace {

// Also MiniMax-Text-01. There is no flag: the weights of the chosen always sum to one.
std::optional<FamilyLayer> mixtral_layer(ModelConfig& config, int32_t layer) {
  LayerSpec spec = common_layer(config, layer, config.count({"intermediate_size"}),
                                {"num_local_experts", "num_experts"});
  sum_to_one(&spec.router);
  return FamilyLayer{spec, {}};
}

constexpr Family kRows[] = {
    {.model_type = "mixtral",
     .layer = mixtral_layer,
     .rules = kBlockSparseMoe,
     .architecture = "MixtralForCausalLM",
     .synthetic = R"("num_local_experts": $experts, "intermediate_size": $intermediate)"},
};

}  // namespace

std::span<const Family> mixtral_rows() { return kRows; }

}  // namespace moe
