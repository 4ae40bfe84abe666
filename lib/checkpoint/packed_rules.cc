#include "checkpoint/packed_rules.h"

#include <algorithm>
#include <initializer_list>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/packed_names.h"

namespace moe {
namespace {

// A module that is one Linear: nothing else is ever packed.
bool is_module(const TensorRule& rule) {
  const bool matrix = role_of(rule.kind) == Role::matrix && rule.name.ends_with(kWeight);
  return matrix && rule.axes == (rule.kind == WeightKind::down ? "h i" : "i h");
}

}  // namespace

struct PackedRules::Wanted {
  std::string name;
  Dims shape;
  std::initializer_list<DType> types;
  bool required = true;
};

const Checkpoint::Tensor* PackedRules::find(const TensorRule& rule, std::string_view name,
                                            std::string* packed) const {
  if (!scheme_ || scheme_->packing == Packing::none || !is_module(rule)) return nullptr;
  packed->assign(name);
  rename_weight(packed_names(scheme_->packing).values, packed);
  return directory_.find(*packed);
}

Status PackedRules::check_one(const Wanted& wanted, const Tensor& words, Place place,
                              const Tensor** found) {
  *found = directory_.find(wanted.name);
  if (!*found && !wanted.required) return {};
  if (!*found)
    return invalid_argument(place,
                            "{} in {} is packed as {}, but {} is missing; complete the download",
                            words.name, words.file, to_string(scheme_->packing), wanted.name);
  const Tensor& tensor = **found;
  place.file = tensor.file;
  place.tensor = tensor.name;
  const auto name_of = [](DType type) { return to_safetensors(type); };
  if (std::find(wanted.types.begin(), wanted.types.end(), tensor.dtype) == wanted.types.end()) {
    std::vector<std::string_view> types(wanted.types.size());
    std::transform(wanted.types.begin(), wanted.types.end(), types.begin(), name_of);
    return error(StatusCode::unimplemented, place, "{} in {} is stored as {}, wanted {}",
                 tensor.name, tensor.file, name_of(tensor.dtype), fmt::join(types, " or "));
  }
  if (tensor.shape == wanted.shape) return {};
  return invalid_argument(
      place,
      "{} in {} has shape {}, but config.json calls for {} ({} {} in groups of "
      "{}). Either the file or config.json belongs to another model",
      tensor.name, tensor.file, shape_text(tensor.shape), shape_text(wanted.shape),
      to_string(scheme_->packing), to_string(scheme_->format.kind),
      scheme_->format.group > 0 ? fmt::format("{}", scheme_->format.group) : "whole rows");
}

Status PackedRules::check_scales(Owner owner, const Tensor& scales, const Place& place) {
  const Tensor*& first = scales_[owner == Owner::shared];
  if (!first) first = &scales;
  if (first->dtype == scales.dtype && first->shape.rank == scales.shape.rank) return {};
  return invalid_argument(
      place,
      "{} in {} is {} {}, but {} is {} {}; the scales of a layer's experts must "
      "be alike",
      scales.name, scales.file, to_safetensors(scales.dtype), shape_text(scales.shape), first->name,
      to_safetensors(first->dtype), shape_text(first->shape));
}

Status PackedRules::check(const Part& part, int32_t expert, const Tensor& words, Place place,
                          LayerTensors* tensors) {
  LayerSpec& spec = tensors->spec();
  Format& format = (part.owner == Owner::shared ? spec.shared->expert : spec.expert).format;
  const DType scale_type = format.scale;
  format = scheme_->format;
  format.scale = scale_type;  // as an earlier expert's
  StoredQuant stored = tensors->quant(part.owner);
  stored.packing = scheme_->packing;
  tensors->choose_quant(part.owner, stored);

  const PackedMatrix matrix = tensors->packed(part);
  if (Status status = check_packed(matrix); !status.ok()) return status.at(place);
  const PackedNames& names = packed_names(matrix.packing);
  const auto name = [&](std::string_view suffix) {
    std::string text;
    tensors->name(tensors->rule(part), expert, &text);
    rename_weight(suffix, &text);
    return text;
  };
  const Tensor* found = nullptr;
  const auto check = [&](std::string_view suffix, const Dims& shape,
                         std::initializer_list<DType> types, bool required) {
    return check_one({name(suffix), shape, types, required}, words, place, &found);
  };
  const bool compressed = matrix.packing == Packing::compressed;
  MOE_RETURN_IF_ERROR(check(names.values, packed_values(matrix), {DType::i32}, true));
  MOE_RETURN_IF_ERROR(
      check(names.zeros, packed_zeros(matrix), {DType::i32}, !compressed || format.zero_points));
  MOE_RETURN_IF_ERROR(check(names.groups, {matrix.columns}, {DType::i32}, format.act_order));
  if (!names.extents.empty())
    MOE_RETURN_IF_ERROR(check(names.extents, {2}, {DType::i64, DType::i32}, false));

  const Tensor* scales = directory_.find(name(names.scales));
  Dims shape = tensors->scale_layout(part).shape;
  stored.single = scales && compressed && format.group == 0 && !format.zero_points &&
                  scales->shape.rank <= 1 && scales->shape.elements() == 1;
  if (stored.single) shape = scales->shape;
  MOE_RETURN_IF_ERROR(check(names.scales, shape, {DType::f16, DType::bf16, DType::f32}, true));
  MOE_RETURN_IF_ERROR(check_scales(part.owner, *scales, place));
  format.scale = scales->dtype;
  tensors->choose_quant(part.owner, stored);
  return {};
}

}  // namespace moe
