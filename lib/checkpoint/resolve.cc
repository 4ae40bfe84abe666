#include "checkpoint/resolve.h"

#include <string>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/packed_rules.h"
#include "checkpoint/scale_rules.h"
#include "checkpoint/shard_list.h"
#include "core/error.h"

namespace moe {
namespace {

using Tensor = Checkpoint::Tensor;

// What stands before a layer's index, most usual first. A language model may be part of a larger
// one, whatever its family.
constexpr std::string_view kPrefixes[] = {
    "model.layers.",
    "model.language_model.layers.",
    "language_model.model.layers.",
    "language_model.layers.",
    "language.model.layers.",
    "thinker.model.layers.",
    "layers.",
    "backbone.layers.",
    "transformer.blocks.",
    "transformer.layers.",
    "block.",
};

std::string prefix_of(std::string_view before, const FamilyLayer& layer) {
  return layer.prefix.empty() ? fmt::format("{}{}.", before, layer.spec.layer) : layer.prefix;
}

bool matches(const Dims& wanted, const Dims& got) {
  if (wanted.rank != got.rank) return false;
  for (int axis = 0; axis < got.rank; ++axis)
    if (wanted[axis] >= 0 && wanted[axis] != got[axis]) return false;
  return true;
}

bool is_matrix(WeightKind kind) { return kind >= WeightKind::gate && kind <= WeightKind::down; }

bool is_weight_type(DType type) {
  return type == DType::bf16 || type == DType::f16 || type == DType::f32;
}

bool is_index(DType type) { return type == DType::i32 || type == DType::i64; }

FormatKind format_of(DType type) {
  return type == DType::f32   ? FormatKind::f32
         : type == DType::f16 ? FormatKind::f16
                              : FormatKind::bf16;
}

// What quantised formats put behind a tensor's name, with or without its ".weight".
constexpr std::pair<std::string_view, std::string_view> kQuantisedNames[] = {
    {".qweight", "awq or gptq"},
    {".weight_packed", "compressed-tensors"},
    {"_packed", "compressed-tensors"},
    {"_blocks", "mxfp4"},
    {".blocks", "mxfp4"},
};

class Resolver {
 public:
  Resolver(const Family& family, const TensorDirectory& directory,
           const std::optional<QuantScheme>& scheme)
      : family_(family),
        directory_(directory),
        scheme_(scheme),
        scales_(directory, scheme),
        packed_(directory, scheme) {}

  // Finds what precedes a layer's index by the first router weight that is there.
  Status choose_prefix(const std::vector<FamilyLayer>& layers) {
    for (const FamilyLayer& layer : layers)
      for (std::string_view before : kPrefixes) {
        const LayerTensors tensors(prefix_of(before, layer), layer);
        for (const TensorRule& rule : family_.rules)
          if (LayerTensors::serves(rule, kRouterWeight) && find(tensors, rule, 0)) {
            before_ = before;
            return {};
          }
      }
    return no_router(layers);
  }

  Result<LayerTensors> resolve(const FamilyLayer& layer) {
    LayerTensors tensors(prefix_of(before_, layer), layer);
    first_[0] = first_[1] = nullptr;
    scales_.begin_layer();
    packed_.begin_layer();
    for (const Part& part : tensors.parts()) MOE_RETURN_IF_ERROR(choose(part, &tensors));
    // Without a router weight of the right shape, num_experts is only a claim: do not loop over it.
    const bool experts = find(tensors, tensors.rule(kRouterWeight), 0) != nullptr;
    for (const Part& part : tensors.parts())
      if (experts || !per_expert(tensors.rule(part))) MOE_RETURN_IF_ERROR(check(part, &tensors));
    if (experts) MOE_RETURN_IF_ERROR(check_no_more(tensors));
    return tensors;
  }

  // Everything that was looked for in vain, if anything was.
  Status missing() const {
    if (missing_.empty()) return {};
    return invalid_argument({.file = directory_.path(), .phase = Phase::open},
                            "{}: {} tensors that config.json calls for are missing: {}; complete "
                            "the download, or correct config.json",
                            directory_.path(), missing_.count(), missing_.text());
  }

 private:
  static constexpr Part kRouterWeight = {WeightKind::router_weight};

  const Tensor* find(const LayerTensors& tensors, const TensorRule& rule, int32_t expert) {
    tensors.name(rule, expert, &name_);
    return directory_.find(name_);
  }

  // After find(): the words in place of that matrix.
  const Tensor* find_packed(const TensorRule& rule) {
    return packed_.find(rule, name_, &packed_name_);
  }

  Status no_router(const std::vector<FamilyLayer>& layers) const {
    std::vector<std::string> names;
    for (const TensorRule& rule : family_.rules)
      if (LayerTensors::serves(rule, kRouterWeight))
        names.push_back(prefix_of(family_.prefix, layers[0]) + std::string(rule.name));
    return invalid_argument(
        {.file = directory_.path(), .tensor = names[0], .phase = Phase::open},
        "{}: no router weight of the {} MoE layers that config.json calls for is present; a {} "
        "model "
        "names the first one {}. Complete the download, or correct model_type in config.json",
        directory_.path(), layers.size(), family_.model_type, fmt::join(names, " or "));
  }

  // The first rule whose tensor is present with the right shape; else the first whose tensor is
  // present for any expert; else the family's first, to be reported as missing.
  Status choose(const Part& part, LayerTensors* tensors) {
    const TensorRule* best = nullptr;
    int best_score = -1;
    for (const TensorRule& rule : family_.rules) {
      if (!LayerTensors::serves(rule, part)) continue;
      const int score = this->score(rule, *tensors);
      if (score > best_score) best = &rule, best_score = score;
    }
    if (!best)
      return error(StatusCode::internal, {.layer = tensors->spec().layer, .phase = Phase::open},
                   "family {} has no name for {}", family_.model_type, to_string(part.kind));
    tensors->choose(part, *best);
    return {};
  }

  int score(const TensorRule& rule, const LayerTensors& tensors) {
    if (const Tensor* tensor = find(tensors, rule, 0))
      return matches(tensors.layout(rule).shape, tensor->shape) ? 3 : 2;
    if (find_packed(rule)) return 3;
    // Expert 0 may be what is missing. Expert 1 tells the layout too.
    return per_expert(rule) && (find(tensors, rule, 1) || find_packed(rule)) ? 1 : 0;
  }

  Status check(const Part& part, LayerTensors* tensors) {
    const TensorRule& rule = tensors->rule(part);
    if (rule.name == kZeros) return {};
    if (rule.kind != part.kind && &tensors->rule({rule.kind, part.owner}) == &rule)
      return {};  // up inside gate's tensor, which is checked already
    const Dims wanted = tensors->layout(rule).shape;
    const int32_t copies = per_expert(rule) ? tensors->spec().router.num_experts : 1;
    for (int32_t expert = 0; expert < copies; ++expert) {
      const Tensor* tensor = find(*tensors, rule, expert);
      const Tensor* words = tensor ? nullptr : find_packed(rule);
      if (!tensor && !words) {
        MOE_RETURN_IF_ERROR(check_not_quantised());
        missing_.add(is_packed(part.owner) ? packed_name_ : name_);
        continue;
      }
      const Tensor& stored = tensor ? *tensor : *words;
      const Place place{.file = stored.file,
                        .tensor = stored.name,
                        .layer = tensors->spec().layer,
                        .expert = per_expert(rule) ? expert : -1,
                        .phase = Phase::open};
      if (is_matrix(part.kind)) MOE_RETURN_IF_ERROR(check_alike(part, stored, place));
      if (words) {
        MOE_RETURN_IF_ERROR(packed_.check(part, expert, *words, place, tensors));
        continue;
      }
      MOE_RETURN_IF_ERROR(check_type(part, *tensor, place, tensors));
      if (!matches(wanted, tensor->shape))
        return invalid_argument(place,
                                "{} in {} has shape {}, but config.json calls for {} ({}). Either "
                                "the file or config.json belongs to another model",
                                tensor->name, tensor->file, shape_text(tensor->shape),
                                shape_text(wanted), rule.axes);
      if (is_byte(part, tensor->dtype))
        MOE_RETURN_IF_ERROR(scales_.check(part, *tensor, place, tensors));
    }
    return {};
  }

  bool is_packed(Owner owner) const {
    const Tensor* first = first_[owner == Owner::shared];
    return first && first->dtype == DType::i32;
  }

  // An element of a quantised matrix under its own name.
  bool is_byte(const Part& part, DType type) const {
    const bool int8 = scheme_ && scheme_->format.kind == FormatKind::int8;
    return is_matrix(part.kind) && (type == DType::f8_e4m3 || (type == DType::i8 && int8));
  }

  // Whether what is missing under `name_` is there in a quantised format's names.
  Status check_not_quantised() const {
    const std::string_view base = std::string_view(name_).substr(0, name_.rfind(".weight"));
    for (const auto& [suffix, format] : kQuantisedNames)
      for (std::string_view stem : {std::string_view(name_), base})
        if (const Tensor* tensor = directory_.find(fmt::format("{}{}", stem, suffix)))
          return error(StatusCode::unimplemented,
                       {.file = tensor->file, .tensor = tensor->name, .phase = Phase::open},
                       "{} is missing, but {} in {} is present: the checkpoint is quantised ({}), "
                       "{}; use another version of the model, such as bf16",
                       name_, tensor->name, tensor->file, format,
                       scheme_ ? "unlike what config.json says"
                               : "of which config.json has no quantization_config");
    return {};
  }

  // Matrices of experts are all of one type.
  Status check_alike(const Part& part, const Tensor& tensor, const Place& place) {
    const Tensor*& first = first_[part.owner == Owner::shared];
    if (!first) first = &tensor;
    if (first->dtype == tensor.dtype) return {};
    return invalid_argument(place,
                            "{} in {} is stored as {}, but {} as {}; the experts of a "
                            "layer must share one type",
                            tensor.name, tensor.file, to_safetensors(tensor.dtype), first->name,
                            to_safetensors(first->dtype));
  }

  // Router tensors may be of any float type.
  Status check_type(const Part& part, const Tensor& tensor, const Place& place,
                    LayerTensors* tensors) const {
    const bool index = part.kind == WeightKind::router_token_experts;
    const bool byte = is_byte(part, tensor.dtype);
    if (index ? !is_index(tensor.dtype) : !is_weight_type(tensor.dtype) && !byte)
      return error(StatusCode::unimplemented, place, "{} in {} is stored as {}; {} can be read",
                   tensor.name, tensor.file, to_safetensors(tensor.dtype),
                   index ? "I32 and I64" : "F32, F16 and BF16");
    if (!is_matrix(part.kind) || byte) return {};
    LayerSpec& spec = tensors->spec();
    ExpertSpec& expert = part.owner == Owner::shared ? spec.shared->expert : spec.expert;
    expert.format = {format_of(tensor.dtype)};
    return {};
  }

  // More experts than config.json says: one of the two is wrong.
  Status check_no_more(const LayerTensors& tensors) {
    const RouterSpec& router = tensors.spec().router;
    const TensorRule& up = tensors.rule({WeightKind::up});
    if (!per_expert(up) || family_.more_experts || router.num_zero_experts > 0) return {};
    const Tensor* tensor = find(tensors, up, router.num_experts);
    if (!tensor) tensor = find_packed(up);
    if (!tensor) return {};
    return invalid_argument({.file = tensor->file, .tensor = tensor->name, .phase = Phase::open},
                            "{} is present in {}, but config.json says {} experts (0 to {}). "
                            "Correct config.json, or the conversion that wrote the files",
                            tensor->name, tensor->file, router.num_experts, router.num_experts - 1);
  }

  const Family& family_;
  const TensorDirectory& directory_;
  std::string_view before_ = kPrefixes[0];
  const std::optional<QuantScheme>& scheme_;
  ScaleRules scales_;
  PackedRules packed_;
  const Tensor* first_[2] = {};  // matrix of the layer's routed and shared experts
  std::string name_, packed_name_;
  NameList missing_;
};

}  // namespace

Result<std::vector<LayerTensors>> resolve_layers(const Family& family,
                                                 const std::vector<FamilyLayer>& layers,
                                                 const TensorDirectory& directory,
                                                 const std::optional<QuantScheme>& scheme) {
  Resolver resolver(family, directory, scheme);
  std::vector<LayerTensors> resolved;
  if (layers.empty()) return resolved;
  MOE_RETURN_IF_ERROR(resolver.choose_prefix(layers));
  resolved.reserve(layers.size());
  for (const FamilyLayer& layer : layers) {
    MOE_ASSIGN_OR_RETURN(LayerTensors tensors, resolver.resolve(layer));
    resolved.push_back(std::move(tensors));
  }
  MOE_RETURN_IF_ERROR(resolver.missing());
  return resolved;
}

}  // namespace moe
