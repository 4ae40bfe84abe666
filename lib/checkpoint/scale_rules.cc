#include "checkpoint/scale_rules.h"

#include <fmt/format.h>

namespace moe {
namespace {

// DeepSeek's name, and everybody else's.
constexpr std::string_view kSuffixes[] = {"_scale_inv", "_scale"};

bool is_scale_type(DType type) {
  return type == DType::f32 || type == DType::bf16 || type == DType::f16;
}

// Gate and up in one tensor: no block of it may hold rows of both.
Status check_halves(const Part& part, const Format& format, const Place& place,
                    const LayerTensors& tensors) {
  const int64_t rows = canonical_shape(tensors.spec(), part)[0];
  const bool both = tensors.rule(part).axes.find('g') != std::string_view::npos;
  if (!both || format.kind == FormatKind::int8 || format.group == 0 || rows % format.group == 0)
    return {};
  return error(StatusCode::unimplemented, place,
               "{} rows of gate and as many of up share a tensor with a scale per {} rows, so that "
               "a scale would belong to both",
               rows, format.group);
}

// One number for the matrix of one expert.
bool is_single(const Part& part, const Format& format, const Dims& shape,
               const LayerTensors& tensors) {
  const bool of_one = part.owner == Owner::shared || per_expert(tensors.rule(part));
  return format.group == 0 && of_one && shape.rank <= 1 && shape.elements() == 1;
}

}  // namespace

const Checkpoint::Tensor* ScaleRules::find(const Tensor& matrix, std::string_view* suffix) const {
  for (std::string_view candidate : kSuffixes)
    if (const Tensor* scale = directory_.find(fmt::format("{}{}", matrix.name, candidate))) {
      *suffix = candidate;
      return scale;
    }
  return nullptr;
}

Status ScaleRules::check_alike(Owner owner, const Tensor& scale, const StoredQuant& stored,
                               const Place& place, const LayerTensors& tensors) {
  const Tensor*& first = first_[owner == Owner::shared];
  if (!first) first = &scale;
  const StoredQuant& usual = tensors.quant(owner);
  if (first == &scale || (first->dtype == scale.dtype && usual.scales == stored.scales &&
                          usual.single == stored.single))
    return {};
  return invalid_argument(place,
                          "{} in {} is {} {}, but {} is {} {}; the scales of a layer's experts "
                          "must be alike",
                          scale.name, scale.file, to_safetensors(scale.dtype),
                          shape_text(scale.shape), first->name, to_safetensors(first->dtype),
                          shape_text(first->shape));
}

// Zero points and group indices: there if the format has them.
Status ScaleRules::check_more(const Tensor& matrix, std::string_view suffix, const Dims& shape,
                              DType type, bool required, const Place& place) {
  if (!required) return {};
  const std::string name = fmt::format("{}{}", matrix.name, suffix);
  const Tensor* found = directory_.find(name);
  if (!found)
    return invalid_argument(place,
                            "{} in {} is stored as {}, but {} is missing; complete the download",
                            matrix.name, matrix.file, to_safetensors(matrix.dtype), name);
  if (found->dtype == type && found->shape == shape) return {};
  Place at = place;
  at.file = found->file;
  at.tensor = found->name;
  return invalid_argument(at, "{} in {} is {} {}, wanted {} {}", found->name, found->file,
                          to_safetensors(found->dtype), shape_text(found->shape),
                          to_safetensors(type), shape_text(shape));
}

// Whether config.json says how matrices of this type are scaled.
bool ScaleRules::described(DType type) const {
  const FormatKind kind = type == DType::i8 ? FormatKind::int8 : FormatKind::fp8_block;
  return scheme_ && scheme_->packing == Packing::none && scheme_->format.kind == kind;
}

Status ScaleRules::check(const Part& part, const Tensor& matrix, const Place& place,
                         LayerTensors* tensors) {
  if (!described(matrix.dtype))
    return error(StatusCode::unimplemented, place,
                 "{} in {} is stored as {}, but config.json has no quantization_config that says "
                 "how it is scaled; complete config.json",
                 matrix.name, matrix.file, to_safetensors(matrix.dtype));
  StoredQuant stored;
  const Tensor* scale = find(matrix, &stored.scales);
  if (!scale)
    return invalid_argument(place,
                            "{} in {} is stored as {}, but its scales are missing: neither "
                            "{}_scale_inv nor {}_scale is present; complete the download",
                            matrix.name, matrix.file, to_safetensors(matrix.dtype), matrix.name,
                            matrix.name);
  Place at = place;
  at.file = scale->file;
  at.tensor = scale->name;
  if (!is_scale_type(scale->dtype))
    return error(StatusCode::unimplemented, at,
                 "{} in {} is stored as {}; scales can be read as F32, F16 and BF16", scale->name,
                 scale->file, to_safetensors(scale->dtype));

  LayerSpec& spec = tensors->spec();
  Format& format = (part.owner == Owner::shared ? spec.shared->expert : spec.expert).format;
  format = scheme_->format;
  format.scale = scale->dtype;
  MOE_RETURN_IF_ERROR(check_halves(part, format, at, *tensors));
  const Dims wanted = tensors->scale_layout(part).shape;
  stored.single = is_single(part, format, scale->shape, *tensors);
  const bool column = format.group == 0 && scale->shape == Dims{wanted[0]};  // (outputs)
  if (!stored.single && !column && !(scale->shape == wanted))
    return invalid_argument(at,
                            "{} in {} has shape {}, but {} of shape {} needs scales of shape {}{}",
                            scale->name, scale->file, shape_text(scale->shape), matrix.name,
                            shape_text(matrix.shape), shape_text(wanted),
                            format.group == 0 ? ""
                            : format.kind == FormatKind::fp8_block
                                ? fmt::format(", one per {0} x {0} block", format.group)
                                : fmt::format(", one per {} inputs", format.group));
  MOE_RETURN_IF_ERROR(check_alike(part.owner, *scale, stored, at, *tensors));
  tensors->choose_quant(part.owner, stored);
  const Dims row = {canonical_shape(spec, part)[1]};
  MOE_RETURN_IF_ERROR(
      check_more(matrix, "_zero_point", scale->shape, DType::i8, format.zero_points, at));
  return check_more(matrix, "_g_idx", row, DType::i32, format.act_order, at);
}

}  // namespace moe
