#include "moe/weights.h"

#include "core/error.h"

namespace moe {

WeightSource::~WeightSource() = default;

Status WeightSource::read_all(std::span<const WeightRead> reads) const {
  for (const WeightRead& wanted : reads) MOE_RETURN_IF_ERROR(read(wanted.id, wanted.out));
  return {};
}

const char* to_string(Activation activation) {
  switch (activation) {
    case Activation::silu: return "silu";
    case Activation::gelu: return "gelu";
    case Activation::gelu_tanh: return "gelu_tanh";
    case Activation::relu: return "relu";
    case Activation::relu2: return "relu2";
    case Activation::swiglu_oai: return "swiglu_oai";
    case Activation::swiglu_step: return "swiglu_step";
  }
  return "unknown";
}

const char* to_string(FormatKind kind) {
  switch (kind) {
    case FormatKind::f32: return "f32";
    case FormatKind::f16: return "f16";
    case FormatKind::bf16: return "bf16";
    case FormatKind::fp8_block: return "fp8_block";
    case FormatKind::int8: return "int8";
    case FormatKind::int4: return "int4";
    case FormatKind::mxfp4: return "mxfp4";
    case FormatKind::nvfp4: return "nvfp4";
  }
  return "unknown";
}

const char* to_string(WeightKind kind) {
  switch (kind) {
    case WeightKind::router_weight: return "router_weight";
    case WeightKind::router_bias: return "router_bias";
    case WeightKind::router_selection_bias: return "router_selection_bias";
    case WeightKind::router_per_expert_scale: return "router_per_expert_scale";
    case WeightKind::router_input_scale: return "router_input_scale";
    case WeightKind::router_token_experts: return "router_token_experts";
    case WeightKind::shared_gate: return "shared_gate";
    case WeightKind::gate: return "gate";
    case WeightKind::up: return "up";
    case WeightKind::down: return "down";
    case WeightKind::gate_bias: return "gate_bias";
    case WeightKind::up_bias: return "up_bias";
    case WeightKind::down_bias: return "down_bias";
    case WeightKind::gate_scale: return "gate_scale";
    case WeightKind::up_scale: return "up_scale";
    case WeightKind::down_scale: return "down_scale";
    case WeightKind::gate_zero: return "gate_zero";
    case WeightKind::up_zero: return "up_zero";
    case WeightKind::down_zero: return "down_zero";
    case WeightKind::gate_group: return "gate_group";
    case WeightKind::up_group: return "up_group";
    case WeightKind::down_group: return "down_group";
  }
  return "unknown";
}

namespace {

// Keeps every product of two extents, two bytes and a few experts far from 2^63.
constexpr int64_t kLargestExtent = int64_t{1} << 24;

Status validate_expert(const ExpertSpec& expert, const char* what, const Place& place) {
  const auto check = [&](const char* field, int64_t value) {
    if (value >= 1 && value <= kLargestExtent) return Status();
    return invalid_argument(place, "{}.{} is {}, wanted 1 to {}", what, field, value,
                            kLargestExtent);
  };
  MOE_RETURN_IF_ERROR(check("hidden", expert.hidden));
  MOE_RETURN_IF_ERROR(check("intermediate", expert.intermediate));
  const bool clamped =
      expert.activation == Activation::swiglu_oai || expert.activation == Activation::swiglu_step;
  if (clamped && !(expert.limit > 0))
    return invalid_argument(place, "{}.limit is {}, wanted a positive number for {}", what,
                            expert.limit, to_string(expert.activation));
  if (clamped && !expert.gated)
    return invalid_argument(place, "{}.activation {} needs a gate projection, but gated is false",
                            what, to_string(expert.activation));
  if (expert.format.group < 0)
    return invalid_argument(place, "{}.format.group is {}, wanted 0 or more", what,
                            expert.format.group);
  return {};
}

}  // namespace

Status validate(const LayerSpec& spec) {
  const Place place{.layer = spec.layer};
  if (spec.layer < 0) return invalid_argument(place, "layer is {}, wanted 0 or more", spec.layer);
  if (Status status = validate(spec.router); !status.ok()) return status.at(place);
  MOE_RETURN_IF_ERROR(validate_expert(spec.expert, "expert", place));
  if (!spec.shared) return {};
  MOE_RETURN_IF_ERROR(validate_expert(spec.shared->expert, "shared.expert", place));
  if (spec.shared->expert.hidden != spec.expert.hidden)
    return invalid_argument(place, "shared.expert.hidden is {}, but expert.hidden is {}",
                            spec.shared->expert.hidden, spec.expert.hidden);
  return {};
}

}  // namespace moe
