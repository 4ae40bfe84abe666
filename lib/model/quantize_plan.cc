#include "model/quantize_plan.h"

#include <filesystem>
#include <utility>

#include "checkpoint/packed_names.h"
#include "core/error.h"
#include "model/quantize_error.h"
#include "model/quantized_config.h"

namespace moe {

Format quantised_format(const ExpertSpec& from, const QuantizeOptions& options) {
  const FormatKind kind = from.format.kind;
  const DType scale = kind == FormatKind::f32   ? DType::f32
                      : kind == FormatKind::f16 ? DType::f16
                                                : DType::bf16;
  return {.kind = options.format, .group = options.group, .scale = scale};
}

Status QuantizePlan::add_all(NewCheckpoint* made) {
  for (const LayerTensors& layer : from_.layers.layers()) {
    const LayerSpec& spec = layer.spec();
    MOE_RETURN_IF_ERROR(check(spec.expert, spec.layer));
    for (int32_t e = 0; e < spec.router.num_experts; ++e)
      MOE_RETURN_IF_ERROR(add_expert(layer, Owner::routed, e, made));
    if (!spec.shared) continue;
    MOE_RETURN_IF_ERROR(check(spec.shared->expert, spec.layer));
    MOE_RETURN_IF_ERROR(add_expert(layer, Owner::shared, kSharedExpert, made));
  }
  if (experts_.empty())
    return error(StatusCode::failed_precondition, {.file = source_.name()},
                 "{} has no MoE layers; there is nothing to quantise", source_.name());
  return add_rest(made);
}

Status QuantizePlan::check(const ExpertSpec& spec, int32_t layer) const {
  const FormatKind kind = spec.format.kind;
  if (kind == FormatKind::fp8_block || !is_quantised(kind))
    return OutputError::make(spec, quantised_spec(spec, options_)).status();
  return error(StatusCode::unimplemented, {.layer = layer},
               "the experts of {} are {} already; quantise a version in f32, f16, bf16 or fp8",
               source_.name(), format_name(spec.format));
}

// The name that the family's packed `part` has.
Status QuantizePlan::name_module(const LayerTensors& layer, const Part& part, int32_t expert,
                                 std::string* module) const {
  const Family* family = find_family(from_.family);
  const bool down = part.kind == WeightKind::down;
  for (size_t i = 0; family && i < family->rules.size(); ++i) {
    const TensorRule& rule = family->rules[i];
    if (rule.kind != part.kind || rule.owner != part.owner || !rule.name.ends_with(kWeight) ||
        rule.axes != (down ? "h i" : "i h") || per_expert(rule) != (part.owner == Owner::routed))
      continue;
    layer.name(rule, expert, module);
    rename_weight("", module);
    return {};
  }
  std::string stored;
  layer.name(layer.rule(part), expert, &stored);
  return error(StatusCode::unimplemented, {.tensor = stored, .layer = layer.spec().layer},
               "{} is one tensor for several matrices, and models of family {} have no names for "
               "packed ones; quantise it when it is loaded (ModelOptions::format)",
               stored, from_.family);
}

Status QuantizePlan::add_expert(const LayerTensors& layer, Owner owner, int32_t index,
                                NewCheckpoint* made) {
  NewExpert expert{&layer, owner, index, {}};
  const Format format = quantised_format(expert.spec(), options_);
  TensorRun run;
  for (WeightKind kind : {WeightKind::gate, WeightKind::up, WeightKind::down}) {
    const Part part{kind, owner};
    if (!layer.has(part)) continue;
    const Dims shape = canonical_shape(layer.spec(), part);
    NewMatrix matrix{kind, {}, {Packing::compressed, format, shape[0], shape[1]}};
    MOE_RETURN_IF_ERROR(name_module(layer, part, index, &matrix.module));
    if (Status status = check_packed(matrix.packed); !status.ok())
      return status.at({.tensor = matrix.module, .layer = layer.spec().layer});
    add_tensors(matrix, expert.matrices.size(), &run);
    replace(layer, part, index, matrix.module);
    expert.matrices.push_back(std::move(matrix));
  }
  made->runs.push_back(std::move(run));
  experts_.push_back(std::move(expert));
  return {};
}

// Those of the next expert's matrix at `place`.
void QuantizePlan::add_tensors(const NewMatrix& matrix, size_t place, TensorRun* run) {
  const auto add = [&](std::string_view suffix, NewPart part, DType type, const Dims& shape) {
    const auto bytes = static_cast<uint64_t>(shape.elements()) * (bits_of(type) / 8);
    run->push_back({fmt::format("{}{}", matrix.module, suffix), type, shape, bytes, 1, nullptr,
                    static_cast<int64_t>(keys_.size())});
    keys_.push_back({experts_.size(), place, part});
  };
  const PackedMatrix& packed = matrix.packed;
  const PackedNames& names = packed_names(packed.packing);
  add(names.values, NewPart::words, DType::i32, packed_values(packed));
  add(names.scales, NewPart::scales, packed.format.scale,
      scale_shape(packed.format, packed.rows, packed.columns));
  add(names.extents, NewPart::extents, DType::i64, {2});
}

// What the new tensors stand in for.
void QuantizePlan::replace(const LayerTensors& layer, const Part& part, int32_t expert,
                           const std::string& module) {
  std::string name;
  for (Role role : {Role::matrix, Role::scale}) {
    layer.name(part, role, expert, &name);
    replaced_.insert(name);
  }
  replaced_.insert(module + ".input_scale");  // of fp8 rows
}

// Everything else, copied.
Status QuantizePlan::add_rest(NewCheckpoint* made) const {
  MOE_ASSIGN_OR_RETURN(const Json config, Json::read(from_.directory + "/config.json"));
  const std::string fp8 = "hf_quant_config.json";
  const bool quantised = config.find("quantization_config") || config.find("compression_config") ||
                         std::filesystem::exists(from_.directory + "/" + fp8);
  std::vector<std::string> ignored;
  for (const Checkpoint::Tensor& tensor : from_.files.tensors()) {
    if (replaced_.contains(std::string(tensor.name))) continue;
    if (quantised && bits_of(tensor.dtype) <= 8)
      return error(StatusCode::unimplemented, {.file = tensor.file, .tensor = tensor.name},
                   "{} in {} is quantised ({}) and belongs to no expert; one model cannot say "
                   "both. Quantise a version in f32, f16 or bf16",
                   tensor.name, tensor.file, to_safetensors(tensor.dtype));
    if (tensor.shape.rank == 2 && tensor.name.ends_with(kWeight))
      ignored.emplace_back(tensor.name.substr(0, tensor.name.size() - kWeight.size()));
    made->runs.push_back({copy_of(tensor)});
  }
  made->dropped = {fp8};
  made->config = quantized_config(config, quantised_format(experts_[0].spec(), options_), ignored);
  return {};
}

}  // namespace moe
