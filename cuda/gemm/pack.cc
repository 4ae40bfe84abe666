#include "gemm/pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "gemm/reference.h"
#include "quant/half.h"

namespace moe::cuda {
namespace {

// Where row i of a canonical matrix goes: of gate_up, or of down.
enum class RowOrder { gate, up, own };

int64_t row_in_slot(RowOrder order, int64_t i) {
  if (order == RowOrder::own) return i;
  return gate_row(i) + (order == RowOrder::up ? kInterleave : 0);
}

// One canonical tensor of the expert, from the source into a section.
class Packer {
 public:
  Packer(const WeightSource& source, int32_t layer, int32_t expert)
      : source_(source), layer_(layer), expert_(expert) {}

  Status matrix(WeightKind kind, RowOrder order, int64_t rows, int64_t columns, int64_t stride,
                std::byte* section) {
    const WeightId id{layer_, kind, expert_};
    const Dims shape = {rows, columns};
    MOE_ASSIGN_OR_RETURN(const DType type, float_type(source_, id, shape));
    const int64_t bytes = bits_of(type) / 8;
    raw_.resize(static_cast<size_t>(rows * columns * bytes));
    MOE_RETURN_IF_ERROR(source_.read(id, MutableTensorView(raw_.data(), type, shape)));
    for (int64_t i = 0; i < rows; ++i)
      round_row(type, raw_.data() + i * columns * bytes, columns,
                reinterpret_cast<uint16_t*>(section) + row_in_slot(order, i) * stride);
    return {};
  }

  Status bias(WeightKind kind, RowOrder order, int64_t count, std::byte* section) {
    MOE_ASSIGN_OR_RETURN(const std::vector<float> values,
                         read_f32(source_, {layer_, kind, expert_}, {count}));
    for (int64_t i = 0; i < count; ++i)
      reinterpret_cast<float*>(section)[row_in_slot(order, i)] = values[static_cast<size_t>(i)];
    return {};
  }

 private:
  static void round_row(DType type, const std::byte* from, int64_t count, uint16_t* to) {
    if (type == DType::bf16) {
      std::memcpy(to, from, static_cast<size_t>(count) * 2);
      return;
    }
    constexpr int64_t kBlock = 256;
    float values[kBlock];
    for (int64_t begin = 0; begin < count; begin += kBlock) {
      const int64_t n = std::min(kBlock, count - begin);
      load_row(type, from + begin * bits_of(type) / 8, 1, n, values);
      for (int64_t i = 0; i < n; ++i) to[begin + i] = f32_to_bf16(values[i]);
    }
  }

  const WeightSource& source_;
  int32_t layer_, expert_;
  std::vector<std::byte> raw_;
};

}  // namespace

SlotShape slot_shape(const ExpertSpec& spec) {
  return {spec.hidden, spec.intermediate, 2, spec.bias, spec.gated};
}

Status pack_bf16(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
                 std::byte* slot) {
  const SlotSections at = slot_sections(slot_shape(spec));
  std::memset(slot, 0, static_cast<size_t>(at.bytes));
  Packer packer(source, layer, expert);
  const int64_t rows = spec.intermediate, columns = spec.hidden;
  const RowOrder up = spec.gated ? RowOrder::up : RowOrder::own;
  std::byte* gate_up = slot + at.gate_up;
  if (spec.gated)
    MOE_RETURN_IF_ERROR(
        packer.matrix(WeightKind::gate, RowOrder::gate, rows, columns, at.hidden_stride, gate_up));
  MOE_RETURN_IF_ERROR(packer.matrix(WeightKind::up, up, rows, columns, at.hidden_stride, gate_up));
  MOE_RETURN_IF_ERROR(packer.matrix(WeightKind::down, RowOrder::own, columns, rows,
                                    at.intermediate_stride, slot + at.down));
  if (!spec.bias) return {};
  std::byte* bias = slot + at.gate_up_bias;
  if (spec.gated)
    MOE_RETURN_IF_ERROR(packer.bias(WeightKind::gate_bias, RowOrder::gate, rows, bias));
  MOE_RETURN_IF_ERROR(packer.bias(WeightKind::up_bias, up, rows, bias));
  return packer.bias(WeightKind::down_bias, RowOrder::own, columns, slot + at.down_bias);
}

}  // namespace moe::cuda
