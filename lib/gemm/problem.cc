#include "gemm/problem.h"

#include "core/error.h"
#include "quant/formats.h"
#include "quant/half.h"

namespace moe {
namespace {

constexpr int64_t kMaxExtent = int64_t{1} << 28;

bool needs_gate(Activation activation) {
  return activation == Activation::swiglu_oai || activation == Activation::swiglu_step;
}

bool aligned(const std::byte* memory) { return reinterpret_cast<uintptr_t>(memory) % 64 == 0; }

}  // namespace

Status check_spec(const ExpertSpec& spec) {
  const Place place = {.phase = Phase::plan};
  if (spec.hidden < 1 || spec.hidden > kMaxExtent)
    return invalid_argument(place, "hidden is {}; wanted 1 to {}", spec.hidden, kMaxExtent);
  if (spec.intermediate < 1 || spec.intermediate > kMaxExtent)
    return invalid_argument(place, "intermediate is {}; wanted 1 to {}", spec.intermediate,
                            kMaxExtent);
  if (needs_gate(spec.activation) && !spec.gated)
    return invalid_argument(place, "activation {} needs a gate, but gated is false",
                            to_string(spec.activation));
  return {};
}

Status check_float_format(const ExpertSpec& spec, const char* backend) {
  const FormatKind kind = spec.format.kind;
  if (kind == FormatKind::f32 || kind == FormatKind::f16 || kind == FormatKind::bf16) return {};
  return error(StatusCode::unimplemented, {.phase = Phase::plan},
               "weights are {} (group {}); {} computes from f32, f16 and bf16", to_string(kind),
               spec.format.group, backend);
}

Status check_integer_format(const ExpertSpec& spec, const char* backend) {
  const Format& format = spec.format;
  const Place place = {.phase = Phase::plan};
  if (format.kind != FormatKind::int8 && format.kind != FormatKind::int4)
    return error(StatusCode::unimplemented, place,
                 "weights are {} (group {}); {} computes from "
                 "int8 and int4",
                 to_string(format.kind), format.group, backend);
  MOE_RETURN_IF_ERROR(check_format(format));
  if (format.group % 32 == 0 && format.group <= kMaxExtent) return {};
  return error(StatusCode::unimplemented, place,
               "weights are {} in groups of {}; {} computes from groups of 32, 64, 96, ... inputs "
               "or whole rows",
               to_string(format.kind), format.group, backend);
}

Status check_cpu_batch(const ExpertSpec& spec, const ExpertBatch& batch, size_t workspace_bytes) {
  const Place place = {.phase = Phase::compute};
  const TensorView& hidden = batch.hidden;
  if (hidden.device.kind != DeviceKind::cpu || batch.stream.device.kind != DeviceKind::cpu)
    return invalid_argument(place, "hidden or stream is on a GPU; wanted the CPU");
  if (hidden.shape.rank != 2 || hidden.shape[1] != spec.hidden)
    return invalid_argument(place, "hidden has {} axes and rows of {}; wanted 2 and {}",
                            hidden.shape.rank, hidden.shape[1], spec.hidden);
  if (hidden.dtype != DType::f32 && hidden.dtype != DType::bf16 && hidden.dtype != DType::f16)
    return invalid_argument(place, "hidden is {}; wanted f32, bf16 or f16",
                            to_string(hidden.dtype));
  if (batch.top_k < 1) return invalid_argument(place, "top_k is {}; wanted >= 1", batch.top_k);
  for (const ExpertGroup& group : batch.groups) {
    const Place where = {.expert = group.expert, .phase = Phase::compute};
    if (group.count < 0 || group.first < 0)
      return invalid_argument(where, "group has rows [{}, +{})", group.first, group.count);
    if (group.count > 0 && (!group.slot || !batch.pairs || !batch.out || !hidden.data))
      return invalid_argument(where, "slot, pairs, out or hidden is null for {} rows", group.count);
    if (!aligned(group.slot)) return invalid_argument(where, "slot is not aligned to 64 bytes");
    for (int64_t i = group.first; i < group.first + group.count; ++i)
      if (batch.pairs[i] < 0 || batch.pairs[i] / batch.top_k >= hidden.shape[0])
        return invalid_argument(where, "pair {} is out of range; hidden has {} rows of top_k {}",
                                batch.pairs[i], hidden.shape[0], batch.top_k);
  }
  if (batch.workspace.size() < workspace_bytes)
    return invalid_argument(place, "workspace has {} bytes; workspace_bytes() says {}",
                            batch.workspace.size(), workspace_bytes);
  if (!aligned(batch.workspace.data()))
    return invalid_argument(place, "workspace is not aligned to 64 bytes");
  return {};
}

int64_t pairs_in(const ExpertBatch& batch) {
  int64_t pairs = 0;
  for (const ExpertGroup& group : batch.groups) pairs += group.count;
  return pairs;
}

void load_pair(const ExpertBatch& batch, int64_t pair, int64_t begin, int64_t count, float* out) {
  const TensorView& hidden = batch.hidden;
  const int64_t at = pair / batch.top_k * hidden.strides[0] + begin * hidden.strides[1];
  const auto* row = static_cast<const std::byte*>(hidden.data) + at * (bits_of(hidden.dtype) / 8);
  load_row(hidden.dtype, row, hidden.strides[1], count, out);
  if (!batch.input_weights) return;
  for (int64_t i = 0; i < count; ++i) out[i] *= batch.input_weights[pair];
}

}  // namespace moe
