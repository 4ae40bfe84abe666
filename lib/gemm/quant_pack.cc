#include "gemm/quant_pack.h"

#include <cstring>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "gemm/read_matrix.h"
#include "gemm/reference.h"
#include "quant/half.h"
#include "quant/int4.h"

namespace moe::cpu {
namespace {

// The column that each input stands in. In act-order the groups lie one behind the other, each
// padded to the same number of columns.
Result<std::vector<int64_t>> columns_of(const QuantMatrix& m, const QuantPanels& panels) {
  std::vector<int64_t> column(static_cast<size_t>(m.columns));
  std::iota(column.begin(), column.end(), int64_t{0});
  if (!m.groups) return column;
  std::vector<int64_t> used(static_cast<size_t>(panels.groups));
  const int64_t size = panels.group_blocks * kBlock;
  for (int64_t i = 0; i < m.columns; ++i) {
    const int32_t group = m.groups[i];
    if (used[static_cast<size_t>(group)] == size)
      return error(StatusCode::unimplemented, {},
                   "group {} has more inputs than its {}; no layout holds it", group, size);
    column[static_cast<size_t>(i)] = group * size + used[static_cast<size_t>(group)]++;
  }
  return column;
}

void store_scale(DType type, float scale, std::byte* out, int64_t at) {
  store_float(type, out, at, scale);  // exact: the scale has this type already
}

// Row `row` of `m` becomes lane `lane` (of 32) of a panel pair.
void pack_row(const QuantMatrix& m, int64_t row, const std::vector<int64_t>& columns,
              const QuantPanels& panels, int64_t lane, std::byte* pair) {
  auto* values = reinterpret_cast<uint8_t*>(pair);
  const int64_t panel = lane / kPanel * (panels.block_bytes / 2);
  const bool small = m.format.kind == FormatKind::int4;
  const uint8_t* from = m.values + row * row_bytes(m.format, m.columns);
  for (int64_t i = 0; i < m.columns; ++i) {
    const int64_t column = columns[static_cast<size_t>(i)];
    const ValueAt at = value_at(m.format.kind, column % kBlock, lane % kPanel);
    uint8_t& byte = values[column / kBlock * panels.block_bytes + panel + at.byte];
    if (small)
      byte = static_cast<uint8_t>(byte | int4_at(from, i) << at.shift);
    else
      byte = static_cast<uint8_t>(from[i] ^ 0x80);
  }
  const int64_t first = row * groups_of(m.format, m.columns);
  auto* zeros = reinterpret_cast<uint8_t*>(pair) + panels.zeros;
  for (int64_t g = 0; g < panels.groups; ++g) {
    store_scale(m.format.scale, m.scales[first + g], pair + panels.scales, g * kPair + lane);
    if (m.zeros)
      zeros[g * kPair + lane] =
          static_cast<uint8_t>(small ? m.zeros[first + g] : m.zeros[first + g] ^ 0x80);
  }
}

// Row r of a matrix becomes lane r % each + offset of pair r / each.
struct Target {
  const QuantPanels& panels;
  std::byte* section;
  int32_t* order;  // null: none
  int64_t each;
  int64_t offset;
};

Status pack_matrix(const QuantMatrix& m, const Target& to) {
  MOE_ASSIGN_OR_RETURN(const std::vector<int64_t> columns, columns_of(m, to.panels));
  for (int64_t r = 0; r < m.rows; ++r)
    pack_row(m, r, columns, to.panels, r % to.each + to.offset,
             to.section + r / to.each * to.panels.pair_bytes);
  if (!to.order) return {};
  std::vector<int32_t> order(static_cast<size_t>(to.panels.columns), -1);
  for (int64_t i = 0; i < m.columns; ++i)
    order[static_cast<size_t>(columns[static_cast<size_t>(i)])] = static_cast<int32_t>(i);
  // gate and up are multiplied by the same row, so they must agree on its order.
  if (to.offset > 0 && std::memcmp(order.data(), to.order, order.size() * sizeof order[0]) != 0)
    return error(StatusCode::unimplemented, {},
                 "up groups its inputs in another order than gate; load this model as bf16");
  std::memcpy(to.order, order.data(), order.size() * sizeof order[0]);
  return {};
}

}  // namespace

Status pack_quant_expert(const ExpertSpec& spec, const WeightSource& source, int32_t layer,
                         int32_t expert, std::byte* slot) {
  const QuantSections at = quant_sections(spec);
  std::memset(slot, 0, static_cast<size_t>(at.bytes));
  const bool ordered = spec.format.act_order;
  const auto order_at = [&](int64_t offset) {
    return ordered ? reinterpret_cast<int32_t*>(slot + offset) : nullptr;
  };
  const auto matrix = [&](WeightKind kind, int64_t outputs, int64_t inputs,
                          const Target& to) -> Status {
    MOE_ASSIGN_OR_RETURN(const QuantBuffer from, read_quantised(source, {layer, kind, expert},
                                                                spec.format, outputs, inputs));
    return pack_matrix(from.view(), to).at({.tensor = to_string(kind)});
  };
  const int64_t each = outputs_of_pair(spec);
  const Target gate = {at.gate_up_panels, slot + at.gate_up, order_at(at.gate_up_order), each, 0};
  const Target up = {at.gate_up_panels, slot + at.gate_up, order_at(at.gate_up_order), each,
                     spec.gated ? kPanel : 0};
  const Target down = {at.down_panels, slot + at.down, order_at(at.down_order), kPair, 0};
  if (spec.gated)
    MOE_RETURN_IF_ERROR(matrix(WeightKind::gate, spec.intermediate, spec.hidden, gate));
  MOE_RETURN_IF_ERROR(matrix(WeightKind::up, spec.intermediate, spec.hidden, up));
  MOE_RETURN_IF_ERROR(matrix(WeightKind::down, spec.hidden, spec.intermediate, down));
  if (!spec.bias) return {};

  const auto bias = [&](WeightKind kind, int64_t outputs, int64_t section, int64_t step,
                        int64_t offset) -> Status {
    MOE_ASSIGN_OR_RETURN(const std::vector<float> from,
                         read_f32(source, {layer, kind, expert}, {outputs}));
    auto* out = reinterpret_cast<float*>(slot + section);
    for (int64_t i = 0; i < outputs; ++i)
      out[i / step * kPair + i % step + offset] = from[static_cast<size_t>(i)];
    return {};
  };
  if (spec.gated)
    MOE_RETURN_IF_ERROR(
        bias(WeightKind::gate_bias, spec.intermediate, at.gate_up_bias, each, gate.offset));
  MOE_RETURN_IF_ERROR(
      bias(WeightKind::up_bias, spec.intermediate, at.gate_up_bias, each, up.offset));
  return bias(WeightKind::down_bias, spec.hidden, at.down_bias, kPair, 0);
}

}  // namespace moe::cpu
