#include "model/check.h"

#include <cstdlib>

#include "core/error.h"
#include "quant/half.h"

namespace moe {
namespace {

std::string name_of(Device device) {
  return device.kind == DeviceKind::cpu ? "the CPU" : fmt::format("cuda:{}", device.index);
}

// Rows of `columns` floats on `device`, dense within a row.
Status check_rows(const char* name, const TensorView& view, int64_t columns, Device device) {
  if (view.shape.rank != 2 || view.strides.rank != 2)
    return invalid_argument({}, "{} has {} axes; it must be (tokens, {})", name, view.shape.rank,
                            columns);
  if (view.shape[0] < 0 || view.shape[1] != columns)
    return invalid_argument({}, "{} is ({}, {}); it must be (tokens, {})", name, view.shape[0],
                            view.shape[1], columns);
  if (view.dtype != DType::f32 && view.dtype != DType::bf16 && view.dtype != DType::f16)
    return invalid_argument({}, "{} is {}; it must be f32, bf16 or f16", name,
                            to_string(view.dtype));
  if (view.device != device)
    return invalid_argument({}, "{} is on {} but this model runs on {}", name, name_of(view.device),
                            name_of(device));
  if (view.shape[0] == 0) return {};
  if (!view.data) return invalid_argument({}, "{} is null with {} rows", name, view.shape[0]);
  if (view.strides[1] != 1 || (view.shape[0] > 1 && view.strides[0] < columns))
    return invalid_argument({},
                            "{} has strides ({}, {}); rows must be dense and not overlap: the "
                            "second must be 1, the first at least {}",
                            name, view.strides[0], view.strides[1], columns);
  return {};
}

// First and past-the-last byte of all rows.
struct Extent {
  const char* begin;
  const char* end;
};
Extent extent(const TensorView& view) {
  const auto* begin = static_cast<const char*>(view.data);
  const int64_t elements = (view.shape[0] - 1) * view.strides[0] + view.shape[1];
  return {begin, begin + elements * (bits_of(view.dtype) / 8)};
}

Status check_overlap(const char* name, const TensorView& in, const TensorView& out) {
  if (in.shape[0] == 0 || !in.data) return {};
  const bool same = in.data == out.data && in.dtype == out.dtype &&
                    (in.shape[0] == 1 || in.strides[0] == out.strides[0]);
  const Extent a = extent(in), b = extent(out);
  if (same || a.end <= b.begin || b.end <= a.begin) return {};
  return invalid_argument({},
                          "out overlaps {} without being the same view (pointer, dtype, strides); "
                          "pass {} itself or separate memory",
                          name, name);
}

Status check_routing(const char* name, const Routing& routing, int64_t tokens, int32_t top_k) {
  if (routing.tokens != tokens || routing.top_k != top_k)
    return invalid_argument({}, "{} is ({}, {}); this forward routes ({}, {})", name,
                            routing.tokens, routing.top_k, tokens, top_k);
  if (tokens > 0 && (!routing.ids || !routing.weights))
    return invalid_argument({}, "{} has a null array", name);
  return {};
}

}  // namespace

Status check_forward(const LayerSpec& spec, const TensorView& hidden, const MutableTensorView& out,
                     const ForwardOptions& options, Device device, int64_t* rows) {
  MOE_RETURN_IF_ERROR(check_rows("hidden", hidden, spec.hidden(), device));
  MOE_RETURN_IF_ERROR(check_rows("out", out, spec.hidden(), device));
  const int64_t tokens = hidden.shape[0];
  if (out.shape[0] != tokens)
    return invalid_argument({}, "out has {} rows but hidden has {}", out.shape[0], tokens);
  MOE_RETURN_IF_ERROR(check_overlap("hidden", hidden, out));

  const int32_t candidates = spec.router.candidates();
  if (options.top_k < 0 || options.top_k > candidates)
    return invalid_argument({}, "top_k is {}; the layer has {} candidates (0: the model's {})",
                            options.top_k, candidates, spec.router.top_k);
  const int32_t top_k = options.top_k > 0 ? options.top_k : spec.router.top_k;
  if (options.routing_in)
    MOE_RETURN_IF_ERROR(check_routing("routing_in", *options.routing_in, tokens, top_k));
  if (options.routing_out)
    MOE_RETURN_IF_ERROR(check_routing("routing_out", *options.routing_out, tokens, top_k));
  if (options.router_logits.data) {
    MOE_RETURN_IF_ERROR(check_rows("router_logits", options.router_logits, candidates, device));
    if (options.router_logits.shape[0] != tokens)
      return invalid_argument({}, "router_logits has {} rows but hidden has {}",
                              options.router_logits.shape[0], tokens);
  }
  if (options.router_input.data) {
    MOE_RETURN_IF_ERROR(check_rows("router_input", options.router_input, spec.hidden(), device));
    if (options.router_input.shape[0] != tokens)
      return invalid_argument({}, "router_input has {} rows but hidden has {}",
                              options.router_input.shape[0], tokens);
  }
  if (spec.router.selection == Selection::token_lookup && !options.token_ids && tokens > 0 &&
      !options.routing_in)
    return invalid_argument({}, "layer {} routes by token id: set ForwardOptions::token_ids",
                            spec.layer);
  if (options.usage && device.kind != DeviceKind::cpu)
    return error(StatusCode::unimplemented, {},
                 "usage is recorded on the CPU only; on {} set routing_out and record() its ids",
                 name_of(device));
  if (options.batch_invariant && spec.router.capacity > 0 && !options.routing_in)
    return error(
        StatusCode::failed_precondition, {},
        "batch_invariant: layer {} drops rows beyond its capacity of {}, by what else is in "
        "the batch",
        spec.layer, spec.router.capacity);
  if (options.deadline_ns < 0)
    return invalid_argument({}, "deadline_ns is {}; it must not be negative", options.deadline_ns);

  *rows = tokens;
  if (options.valid_rows && device.kind == DeviceKind::cpu) {
    if (*options.valid_rows < 0 || *options.valid_rows > tokens)
      return invalid_argument({}, "*valid_rows is {} but hidden has {} rows", *options.valid_rows,
                              tokens);
    *rows = *options.valid_rows;
  }
  return {};
}

}  // namespace moe
