#include "gemm/pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "gemm/read_matrix.h"
#include "gemm/reference.h"
#include "quant/half.h"

namespace moe::cuda {
namespace {

// One canonical tensor of the expert, from the source into a section.
class Packer {
 public:
  Packer(const WeightSource& source, int32_t layer, int32_t expert)
      : source_(source), layer_(layer), expert_(expert) {}

  // bf16.
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

  // e4m3; the scales, a row of blocks after the other, into `scales`.
  Status matrix_fp8(WeightKind kind, RowOrder order, const Format& format, int64_t rows,
                    int64_t columns, int64_t stride, std::byte* section, std::byte* scales) {
    MOE_ASSIGN_OR_RETURN(const QuantBuffer from,
                         read_quantised(source_, {layer_, kind, expert_}, format, rows, columns));
    for (int64_t i = 0; i < rows; ++i) {
      const uint8_t* row = from.values.data() + i * columns;
      std::byte* to = section + row_in_slot(order, i) * stride;
      for (int64_t k = 0; k < columns; ++k) to[e4m3_column(k)] = static_cast<std::byte>(row[k]);
    }
    std::memcpy(scales, from.scales.data(), from.scales.size() * sizeof(float));
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
  const bool fp8 = spec.format.kind == FormatKind::fp8_block;
  return {spec.hidden, spec.intermediate, fp8 ? 1 : 2, spec.bias, spec.gated};
}

Status pack_slot(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
                 std::byte* slot) {
  const SlotShape shape = slot_shape(spec);
  const SlotSections at = slot_sections(shape);
  std::memset(slot, 0, static_cast<size_t>(at.bytes));
  Packer packer(source, layer, expert);
  const int64_t rows = spec.intermediate, columns = spec.hidden;
  const RowOrder up = spec.gated ? RowOrder::up : RowOrder::own;
  const int64_t gate_scales =
      spec.gated ? scale_blocks(rows) * scale_blocks(columns) * int64_t{sizeof(float)} : 0;
  const auto matrix = [&](WeightKind kind, RowOrder order, int64_t outputs, int64_t inputs,
                          int64_t stride, int64_t section, int64_t scales) {
    return shape.element_bytes == 1
               ? packer.matrix_fp8(kind, order, spec.format, outputs, inputs, stride,
                                   slot + section, slot + scales)
               : packer.matrix(kind, order, outputs, inputs, stride, slot + section);
  };
  if (spec.gated)
    MOE_RETURN_IF_ERROR(matrix(WeightKind::gate, RowOrder::gate, rows, columns, at.hidden_stride,
                               at.gate_up, at.gate_up_scale));
  MOE_RETURN_IF_ERROR(matrix(WeightKind::up, up, rows, columns, at.hidden_stride, at.gate_up,
                             at.gate_up_scale + gate_scales));
  MOE_RETURN_IF_ERROR(matrix(WeightKind::down, RowOrder::own, columns, rows, at.intermediate_stride,
                             at.down, at.down_scale));
  if (!spec.bias) return {};
  std::byte* bias = slot + at.gate_up_bias;
  if (spec.gated)
    MOE_RETURN_IF_ERROR(packer.bias(WeightKind::gate_bias, RowOrder::gate, rows, bias));
  MOE_RETURN_IF_ERROR(packer.bias(WeightKind::up_bias, up, rows, bias));
  return packer.bias(WeightKind::down_bias, RowOrder::own, columns, slot + at.down_bias);
}

}  // namespace moe::cuda
