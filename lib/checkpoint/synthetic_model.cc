#include "checkpoint/synthetic_model.h"

#include <cmath>

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include "checkpoint/model_layers.h"
#include "checkpoint/resolve.h"
#include "checkpoint/synthetic_config.h"
#include "checkpoint/synthetic_value.h"
#include "core/error.h"
#include "quant/half.h"

namespace moe {
namespace {

constexpr int64_t kVocabulary = 256;

FormatKind format_of(DType type) {
  return type == DType::f32   ? FormatKind::f32
         : type == DType::f16 ? FormatKind::f16
                              : FormatKind::bf16;
}

LayerTensors with_first_names(const Family& family, FamilyLayer layer, DType dtype) {
  layer.spec.expert.format = {format_of(dtype)};
  if (layer.spec.shared) layer.spec.shared->expert.format = {format_of(dtype)};
  const std::string prefix =
      layer.prefix.empty() ? fmt::format("{}{}.", family.prefix, layer.spec.layer) : layer.prefix;
  LayerTensors tensors(prefix, std::move(layer));
  for (const Part& part : tensors.parts())
    for (size_t i = family.rules.size(); i-- > 0;)
      if (LayerTensors::serves(family.rules[i], part)) tensors.choose(part, family.rules[i]);
  return tensors;
}

// How far the elements of a kind spread. Matrices keep the size of what they are applied to.
void set_spread(WeightKind kind, const LayerSpec& spec, Owner owner, SyntheticTensor* tensor) {
  const ExpertSpec& expert = owner == Owner::shared ? spec.shared->expert : spec.expert;
  switch (kind) {
    case WeightKind::router_weight:
    case WeightKind::shared_gate:
    case WeightKind::gate:
    case WeightKind::up: tensor->scale = 1 / std::sqrt(static_cast<float>(expert.hidden)); break;
    case WeightKind::down:
      tensor->scale = 1 / std::sqrt(static_cast<float>(expert.intermediate));
      break;
    case WeightKind::router_per_expert_scale:
    case WeightKind::router_input_scale:
      tensor->offset = 1;
      tensor->scale = 0.1f;
      break;
    case WeightKind::router_token_experts:
      tensor->dtype = DType::i64;
      tensor->modulo = spec.router.num_experts;
      break;
    case WeightKind::router_selection_bias:
      tensor->dtype = DType::f32;
      tensor->scale = 0.02f;
      break;
    default: tensor->scale = 0.1f;
  }
}

}  // namespace

Result<SyntheticModel> synthetic_model(const SyntheticSpec& spec) {
  SyntheticModel model{.spec = spec, .config = {}, .layers = {}};
  const Family* family = find_family(spec.family);
  if (!family)
    return error(StatusCode::not_found, {}, "SyntheticSpec::family is \"{}\", which is not known",
                 spec.family);
  model.spec.family = family->model_type;  // outlives the caller's text
  MOE_ASSIGN_OR_RETURN(model.config, synthetic_config(spec, *family));
  MOE_ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::parse(model.config, "config.json"));
  MOE_ASSIGN_OR_RETURN(ModelLayers layers, model_layers(config));
  std::vector<LayerTensors> tensors;
  for (FamilyLayer& layer : layers.layers)
    tensors.push_back(with_first_names(*family, std::move(layer), spec.dtype));
  model.layers = LayerSet(std::move(tensors));
  return model;
}

SyntheticTensor synthetic_tensor(const SyntheticModel& model, const LayerTensors& layer,
                                 const Part& part, int32_t expert) {
  const TensorRule& rule = layer.rule(part);
  SyntheticTensor tensor{.dtype = model.spec.dtype};
  layer.name(rule, expert, &tensor.name);
  tensor.shape = layer.layout(rule).shape;
  if (tensor.shape[0] == kAnyExtent) tensor.shape[0] = kVocabulary;
  tensor.key = XXH3_64bits_withSeed(tensor.name.data(), tensor.name.size(), model.spec.seed);
  set_spread(rule.kind, layer.spec(), rule.owner, &tensor);
  return tensor;
}

std::vector<SyntheticTensor> synthetic_tensors(const SyntheticModel& model) {
  std::vector<SyntheticTensor> tensors;
  for (const LayerTensors& layer : model.layers.layers())
    for (const Part& part : layer.parts()) {
      const TensorRule& rule = layer.rule(part);
      if (rule.kind != part.kind || rule.name == kZeros) continue;  // up inside gate's, or nowhere
      const int32_t copies = per_expert(rule) ? layer.spec().router.num_experts : 1;
      for (int32_t expert = 0; expert < copies; ++expert)
        tensors.push_back(synthetic_tensor(model, layer, part, expert));
    }
  return tensors;
}

void fill_synthetic(const SyntheticTensor& tensor, int64_t first, int64_t count, void* out) {
  if (tensor.modulo > 0) {  // a row of the table names distinct experts
    const int64_t width = tensor.shape[tensor.shape.rank - 1];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = (first + i) / width;
      const int64_t start = static_cast<int64_t>(synthetic_bits(tensor.key, row) >> 1);
      static_cast<int64_t*>(out)[i] = (start % tensor.modulo + (first + i) % width) % tensor.modulo;
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    store_float(tensor.dtype, out, i,
                tensor.offset + tensor.scale * synthetic_value(tensor.key, first + i));
}

}  // namespace moe
