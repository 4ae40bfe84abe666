// Switch Transformers: one expert per token, relu without a gate, and a capacity per expert beyond
// which rows are dropped (call forward() once per sequence). Encoder layers keep their index;
// decoder layers follow them.
#include <fmt/format.h>

#include "checkpoint/arch.h"

namespace moe {
namespace {

bool sparse(int64_t index, int64_t step) { return step > 0 && (step == 1 || index % step == 1); }

int64_t sparse_step(ModelConfig& config, ModelConfig::Keys step, ModelConfig::Keys sparse_layers,
                    int64_t layers) {
  const int64_t count = config.count_or(sparse_layers, 3);
  return config.count_or(step, count > 0 ? layers / count : 0);
}

std::optional<FamilyLayer> switch_layer(ModelConfig& config, int32_t layer) {
  const int64_t encoder = config.count({"num_layers"});
  const int64_t decoder = config.count_or({"num_decoder_layers"}, encoder);
  const bool decodes = layer >= encoder;
  const int64_t index = decodes ? layer - encoder : layer;
  const int64_t step =
      decodes
          ? sparse_step(config, {"decoder_sparse_step"}, {"num_sparse_decoder_layers"}, decoder)
          : sparse_step(config, {"encoder_sparse_step"}, {"num_sparse_encoder_layers"}, encoder);
  if (!sparse(index, step)) return std::nullopt;
  FamilyLayer result;
  LayerSpec& spec = result.spec;
  spec.layer = layer;
  spec.router.num_experts = static_cast<int32_t>(config.count({"num_experts"}));
  spec.router.top_k = 1;
  spec.router.capacity = config.count_or({"expert_capacity"}, 64);
  spec.expert.hidden = config.count({"d_model"});
  spec.expert.intermediate = config.count({"d_ff"});
  spec.expert.activation = config.activation({"dense_act_fn"}, Activation::relu);
  spec.expert.gated = false;
  result.prefix = decodes ? fmt::format("decoder.block.{}.layer.2.", index)
                          : fmt::format("encoder.block.{}.layer.1.", index);
  if (config.flag_or({"router_bias"}, false)) result.router.push_back(WeightKind::router_bias);
  return result;
}

int64_t switch_layers(ModelConfig& config) {
  const int64_t encoder = config.count({"num_layers"});
  return encoder + config.count_or({"num_decoder_layers"}, encoder);
}

constexpr TensorRule kRules[] = {
    {WeightKind::router_weight, "mlp.router.classifier.weight", "c h"},
    {WeightKind::router_bias, "mlp.router.classifier.bias", "c"},
    {WeightKind::up, "mlp.experts.expert_{e}.wi.weight", "i h"},
    {WeightKind::down, "mlp.experts.expert_{e}.wo.weight", "h i"},
};

constexpr Family kRows[] = {
    {.model_type = "switch_transformers",
     .layer = switch_layer,
     .rules = kRules,
     .layers = switch_layers,
     .architecture = "SwitchTransformersForConditionalGeneration",
     .synthetic = R"("num_layers": $layers, "num_decoder_layers": 0, "encoder_sparse_step": 1,
  "d_model": $hidden, "d_ff": $intermediate, "num_experts": $experts, "expert_capacity": 64)"},
};

}  // namespace

std::span<const Family> switch_rows() { return kRows; }

}  // namespace moe
