#include "gemm/quant_pack.h"

#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "core/error.h"
#include "gemm/read_matrix.h"
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

// Output i of a bias becomes lane i % each + offset of pair i / each.
void pack_bias(const StoredMatrix& bias, int64_t each, int64_t offset, std::byte* section) {
  auto* out = reinterpret_cast<float*>(section);
  const std::vector<float> from = in_f32(bias);
  for (int64_t i = 0; i < bias.of.outputs; ++i)
    out[i / each * kPair + i % each + offset] = from[static_cast<size_t>(i)];
}

}  // namespace

Status pack_quant_expert(const ExpertSpec& spec, const WeightSource& source, int32_t layer,
                         int32_t expert, std::byte* slot) {
  using enum WeightKind;
  const QuantSections at = quant_sections(spec);
  std::memset(slot, 0, static_cast<size_t>(at.bytes));
  std::vector<MatrixId> ids;
  for (WeightKind kind : {gate, up, down})
    if (spec.gated || kind != gate)
      ids.push_back({{layer, kind, expert},
                     kind == down ? spec.hidden : spec.intermediate,
                     kind == down ? spec.intermediate : spec.hidden});
  for (WeightKind kind : {gate_bias, up_bias, down_bias})
    if (spec.bias && (spec.gated || kind != gate_bias))
      ids.push_back({{layer, kind, expert}, kind == down_bias ? spec.hidden : spec.intermediate});
  MOE_ASSIGN_OR_RETURN(std::vector<StoredMatrix> stored, read_stored(source, ids));

  const auto order_at = [&](int64_t offset) {
    return spec.format.act_order ? reinterpret_cast<int32_t*>(slot + offset) : nullptr;
  };
  const int64_t each = outputs_of_pair(spec);
  for (StoredMatrix& one : stored) {
    const WeightKind kind = one.of.id.kind;
    const bool last = kind == down || kind == down_bias;
    const int64_t step = last ? kPair : each;
    const int64_t offset = spec.gated && (kind == up || kind == up_bias) ? kPanel : 0;
    if (one.of.inputs == 0) {
      pack_bias(one, step, offset, slot + (last ? at.down_bias : at.gate_up_bias));
      continue;
    }
    const Target to = {last ? at.down_panels : at.gate_up_panels,
                       slot + (last ? at.down : at.gate_up),
                       order_at(last ? at.down_order : at.gate_up_order), step, offset};
    MOE_ASSIGN_OR_RETURN(const QuantBuffer from, in_format(source, std::move(one), spec.format));
    MOE_RETURN_IF_ERROR(pack_matrix(from.view(), to).at({.tensor = to_string(kind)}));
  }
  return {};
}

}  // namespace moe::cpu
