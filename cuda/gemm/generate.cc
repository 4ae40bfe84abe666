#include "gemm/generate.h"

#include "gemm/generate_matrix.h"
#include "gemm/layout.h"
#include "gemm/pack.h"
#include "runtime/scope.h"

namespace moe::cuda {
namespace {

// One expert's tensors, in the order of pack_slot().
class Generator {
 public:
  Generator(const GeneratedWeights& weights, int32_t layer, int32_t expert, std::byte* slot,
            cudaStream_t stream)
      : weights_(weights), layer_(layer), expert_(expert), slot_(slot), stream_(stream) {}

  Status tensor(WeightKind kind, int64_t section, GenerateArgs args) {
    MOE_ASSIGN_OR_RETURN(args.tensor, weights_.generated({layer_, kind, expert_}));
    args.section = slot_ + section;
    return check(launch_generate(args, stream_), "compute an expert's weights",
                 {.phase = Phase::load});
  }

  // A matrix and, in fp8, its scales.
  Status matrix(WeightKind kind, const GenerateArgs& args, int64_t section, int64_t scales) {
    MOE_RETURN_IF_ERROR(tensor(kind, section, args));
    if (args.type != SectionType::e4m3) return {};
    const int place = static_cast<int>(kind) - static_cast<int>(WeightKind::gate);
    const int64_t blocks = scale_blocks(args.columns);
    return tensor(static_cast<WeightKind>(static_cast<int>(WeightKind::gate_scale) + place), scales,
                  {.rows = scale_blocks(args.rows),
                   .columns = blocks,
                   .type = SectionType::f32,
                   .stride = blocks});
  }

 private:
  const GeneratedWeights& weights_;
  int32_t layer_, expert_;
  std::byte* slot_;
  cudaStream_t stream_;
};

}  // namespace

Status generate_slot(const ExpertSpec& spec, const GeneratedWeights& weights, int32_t layer,
                     int32_t expert, std::byte* slot, cudaStream_t stream) {
  const SlotShape shape = slot_shape(spec);
  const SlotSections at = slot_sections(shape);
  MOE_RETURN_IF_ERROR(check(cudaMemsetAsync(slot, 0, static_cast<size_t>(at.bytes), stream),
                            "clear a slot", {.phase = Phase::load}));
  Generator make(weights, layer, expert, slot, stream);
  const SectionType type = shape.element_bytes == 1 ? SectionType::e4m3 : SectionType::bf16;
  const RowOrder up = spec.gated ? RowOrder::up : RowOrder::own;
  const int64_t rows = spec.intermediate, columns = spec.hidden;
  const int64_t gate_scales =
      spec.gated ? scale_blocks(rows) * scale_blocks(columns) * int64_t{sizeof(float)} : 0;
  if (spec.gated)
    MOE_RETURN_IF_ERROR(make.matrix(WeightKind::gate,
                                    {.rows = rows,
                                     .columns = columns,
                                     .order = RowOrder::gate,
                                     .type = type,
                                     .stride = at.hidden_stride},
                                    at.gate_up, at.gate_up_scale));
  MOE_RETURN_IF_ERROR(make.matrix(
      WeightKind::up,
      {.rows = rows, .columns = columns, .order = up, .type = type, .stride = at.hidden_stride},
      at.gate_up, at.gate_up_scale + gate_scales));
  MOE_RETURN_IF_ERROR(make.matrix(
      WeightKind::down,
      {.rows = columns, .columns = rows, .type = type, .stride = at.intermediate_stride}, at.down,
      at.down_scale));
  if (!spec.bias) return {};
  if (spec.gated)
    MOE_RETURN_IF_ERROR(
        make.tensor(WeightKind::gate_bias, at.gate_up_bias,
                    {.rows = rows, .order = RowOrder::gate, .type = SectionType::f32}));
  MOE_RETURN_IF_ERROR(make.tensor(WeightKind::up_bias, at.gate_up_bias,
                                  {.rows = rows, .order = up, .type = SectionType::f32}));
  return make.tensor(WeightKind::down_bias, at.down_bias,
                     {.rows = columns, .type = SectionType::f32});
}

}  // namespace moe::cuda
