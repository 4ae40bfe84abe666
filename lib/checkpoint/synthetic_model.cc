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
#include "quant/formats.h"
#include "quant/fp8_block.h"
#include "quant/half.h"

namespace moe {
namespace {

constexpr int64_t kVocabulary = 256;

constexpr int32_t kFp8Block = 128;
constexpr float kFp8Spread = 100;  // of E4M3 codes: 3.5 times that is below 448

Format format_of(DType type) {
  switch (type) {
    case DType::f32: return {FormatKind::f32};
    case DType::f16: return {FormatKind::f16};
    case DType::f8_e4m3: return {FormatKind::fp8_block, kFp8Block};
    default: return {FormatKind::bf16};
  }
}

LayerTensors with_first_names(const Family& family, FamilyLayer layer, DType dtype) {
  layer.spec.expert.format = format_of(dtype);
  if (layer.spec.shared) layer.spec.shared->expert.format = format_of(dtype);
  const std::string prefix =
      layer.prefix.empty() ? fmt::format("{}{}.", family.prefix, layer.spec.layer) : layer.prefix;
  LayerTensors tensors(prefix, std::move(layer));
  for (const Part& part : tensors.parts())
    for (size_t i = family.rules.size(); i-- > 0;)
      if (LayerTensors::serves(family.rules[i], part)) tensors.choose(part, family.rules[i]);
  for (Owner owner : {Owner::routed, Owner::shared})
    tensors.choose_quant(owner, {.scales = "_scale_inv"});
  return tensors;
}

// A block of a tensor that holds gate and up must not span both.
Status check_blocks(const LayerTensors& layer) {
  const Part gate = {layer.spec().expert.gated ? WeightKind::gate : WeightKind::up};
  const Format& format = layer.spec().expert.format;
  const bool both = layer.rule(gate).axes.find('g') != std::string_view::npos;
  const int64_t rows = layer.spec().expert.intermediate;
  if (!is_quantised(format.kind) || !both || rows % format.group == 0) return {};
  return invalid_argument({},
                          "SyntheticSpec::intermediate is {}, wanted a multiple of {} for fp8: the "
                          "family keeps gate and up in one tensor",
                          rows, format.group);
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

// A matrix of spread `spread` becomes codes of spread kFp8Spread times scales that vary by half.
void quantise(const Part& part, float spread, const LayerTensors& layer, SyntheticTensor* tensor) {
  if (role_of(part.kind) != Role::scale) {
    tensor->dtype = DType::f8_e4m3;
    tensor->scale = kFp8Spread;
    return;
  }
  tensor->dtype = DType::f32;
  tensor->shape = layer.scale_layout({matrix_of(part.kind), part.owner}).shape;
  tensor->offset = spread / kFp8Spread;
  tensor->scale = 0.15f * tensor->offset;
}

bool is_matrix(WeightKind kind) { return kind >= WeightKind::gate && kind <= WeightKind::down; }

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
  for (const LayerTensors& layer : tensors) MOE_RETURN_IF_ERROR(check_blocks(layer));
  model.layers = LayerSet(std::move(tensors));
  return model;
}

SyntheticTensor synthetic_tensor(const SyntheticModel& model, const LayerTensors& layer,
                                 const Part& part, int32_t expert) {
  const TensorRule& rule = layer.rule({matrix_of(part.kind), part.owner});
  const bool fp8 = model.spec.dtype == DType::f8_e4m3;
  SyntheticTensor tensor{.dtype = fp8 ? DType::bf16 : model.spec.dtype};
  layer.name(part, expert, &tensor.name);
  tensor.shape = layer.layout(rule).shape;
  if (tensor.shape[0] == kAnyExtent) tensor.shape[0] = kVocabulary;
  tensor.key = XXH3_64bits_withSeed(tensor.name.data(), tensor.name.size(), model.spec.seed);
  set_spread(rule.kind, layer.spec(), rule.owner, &tensor);
  if (fp8 && is_matrix(rule.kind)) quantise(part, tensor.scale, layer, &tensor);
  return tensor;
}

std::vector<SyntheticTensor> synthetic_tensors(const SyntheticModel& model) {
  std::vector<SyntheticTensor> tensors;
  for (const LayerTensors& layer : model.layers.layers())
    for (const Part& part : layer.parts()) {
      const TensorRule& rule = layer.rule(part);
      if (rule.kind != part.kind || rule.name == kZeros) continue;  // up inside gate's, or nowhere
      const int32_t copies = per_expert(rule) ? layer.spec().router.num_experts : 1;
      const Part scale = {is_matrix(part.kind) ? companion(part.kind, Role::scale) : part.kind,
                          part.owner};
      const bool scaled = is_matrix(part.kind) && layer.has(scale);
      for (int32_t expert = 0; expert < copies; ++expert) {
        tensors.push_back(synthetic_tensor(model, layer, part, expert));
        if (scaled) tensors.push_back(synthetic_tensor(model, layer, scale, expert));
      }
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
  const auto value = [&](int64_t i) {
    return tensor.offset + tensor.scale * synthetic_value(tensor.key, first + i);
  };
  if (tensor.dtype == DType::f8_e4m3)
    for (int64_t i = 0; i < count; ++i) static_cast<uint8_t*>(out)[i] = f32_to_e4m3(value(i));
  else
    for (int64_t i = 0; i < count; ++i) store_float(tensor.dtype, out, i, value(i));
}

}  // namespace moe
