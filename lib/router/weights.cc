// What RouterWeights must look like.
#include <cmath>
#include <string>

#include "core/error.h"
#include "quant/half.h"
#include "router/cpu_router.h"

namespace moe {
namespace {

Place place_of(const char* tensor) { return {.tensor = tensor, .phase = Phase::route}; }

std::string text(const Dims& shape) {
  return fmt::format("({})", fmt::join(shape.extent, shape.extent + shape.rank, ", "));
}

// `name` has the shape `wanted` (-1: any extent) and lies densely on the CPU along its last axis.
Status check_view(const char* name, const TensorView& view, const Dims& wanted) {
  bool fits = view.shape.rank == wanted.rank;
  for (int axis = 0; fits && axis < wanted.rank; ++axis)
    fits = wanted[axis] < 0 ? view.shape[axis] >= 0 : view.shape[axis] == wanted[axis];
  if (!fits)
    return invalid_argument(place_of(name), "RouterWeights.{} has shape {}; it must be {}", name,
                            text(view.shape), text(wanted));
  if (view.device.kind != DeviceKind::cpu)
    return invalid_argument(place_of(name), "RouterWeights.{} is not in the CPU's memory", name);
  const int last = wanted.rank - 1;
  if (view.shape[last] > 1 && view.strides[last] != 1)
    return invalid_argument(place_of(name),
                            "RouterWeights.{} has stride {} along its last axis; it must be 1",
                            name, view.strides[last]);
  return {};
}

Status check_float(const char* name, const TensorView& view, const Dims& wanted) {
  if (!view.data) return {};
  if (view.dtype != DType::f32 && view.dtype != DType::bf16 && view.dtype != DType::f16)
    return invalid_argument(place_of(name), "RouterWeights.{} is {}; it must be f32, bf16 or f16",
                            name, to_string(view.dtype));
  return check_view(name, view, wanted);
}

Status check_table(const RouterSpec& spec, const TensorView& table) {
  constexpr const char* kName = "token_experts";
  if (spec.selection != Selection::token_lookup) return {};
  if (!table.data)
    return invalid_argument(
        place_of(kName), "RouterWeights.token_experts is absent; selection token_lookup needs it");
  if (table.dtype != DType::i32 && table.dtype != DType::i64)
    return invalid_argument(place_of(kName),
                            "RouterWeights.token_experts is {}; it must be i32 or i64",
                            to_string(table.dtype));
  MOE_RETURN_IF_ERROR(check_view(kName, table, {-1, -1}));
  if (table.shape[1] < spec.top_k)
    return invalid_argument(
        place_of(kName),
        "RouterWeights.token_experts has {} experts per token; RouterSpec.top_k "
        "is {}",
        table.shape[1], spec.top_k);
  return {};
}

// Numbers; -inf is one (an expert that is never selected), as long as `below_all` is allowed.
Status check_numbers(const char* name, const TensorView& view, bool below_all) {
  if (!view.data) return {};
  for (int64_t i = 0; i < view.shape[0]; ++i) {
    const float value = load_float(view.dtype, view.data, i);
    if (std::isfinite(value) || (below_all && value < 0)) continue;
    return invalid_argument(
        place_of(name), "RouterWeights.{}[{}] is {}; it must be a finite number", name, i, value);
  }
  return {};
}

Status check_table_values(const RouterSpec& spec, const TensorView& table) {
  if (spec.selection != Selection::token_lookup) return {};
  for (int64_t token = 0; token < table.shape[0]; ++token)
    for (int64_t place = 0; place < table.shape[1]; ++place) {
      const int64_t at = token * table.strides[0] + place;
      const int64_t id = table.dtype == DType::i64 ? static_cast<const int64_t*>(table.data)[at]
                                                   : static_cast<const int32_t*>(table.data)[at];
      if (id < 0 || id >= spec.candidates())
        return invalid_argument(place_of("token_experts"),
                                "RouterWeights.token_experts[{}][{}] is {}; it must lie in [0, {}]",
                                token, place, id, spec.candidates() - 1);
    }
  return {};
}

}  // namespace

Status check_shapes(const RouterSpec& spec, const RouterWeights& weights) {
  const int64_t candidates = spec.candidates();
  MOE_RETURN_IF_ERROR(check_float("weight", weights.weight, {candidates, -1}));
  const int64_t hidden = weights.weight.data ? weights.weight.shape[1] : -1;
  MOE_RETURN_IF_ERROR(check_float("logit_bias", weights.logit_bias, {candidates}));
  MOE_RETURN_IF_ERROR(check_float("selection_bias", weights.selection_bias, {candidates}));
  MOE_RETURN_IF_ERROR(check_float("per_expert_scale", weights.per_expert_scale, {candidates}));
  MOE_RETURN_IF_ERROR(check_float("input_scale", weights.input_scale, {hidden}));
  MOE_RETURN_IF_ERROR(check_table(spec, weights.token_experts));
  if (spec.selection != Selection::top_k && weights.selection_bias.data)
    return invalid_argument(
        place_of("selection_bias"),
        "RouterWeights.selection_bias is given, but RouterSpec.selection is not "
        "top_k and would ignore it");
  if (!spec.normalize_input && weights.input_scale.data)
    return invalid_argument(place_of("input_scale"),
                            "RouterWeights.input_scale is given, but RouterSpec.normalize_input is "
                            "false and would ignore it");
  return {};
}

Status check_values(const RouterSpec& spec, const RouterWeights& weights) {
  MOE_RETURN_IF_ERROR(check_numbers("logit_bias", weights.logit_bias, true));
  MOE_RETURN_IF_ERROR(check_numbers("selection_bias", weights.selection_bias, true));
  MOE_RETURN_IF_ERROR(check_numbers("per_expert_scale", weights.per_expert_scale, false));
  MOE_RETURN_IF_ERROR(check_numbers("input_scale", weights.input_scale, false));
  return check_table_values(spec, weights.token_experts);
}

}  // namespace moe
