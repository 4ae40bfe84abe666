// How the CPU backend lays out one expert in int8 or int4. Pure arithmetic.
//
//   gate_up         panel pairs over the intermediate size: gate and up of the same 16 outputs; not
//                   gated: 32 outputs of up
//   down            panel pairs over the hidden size, 32 outputs each
//   gate_up_bias    f32, (pairs, 32)                                             with bias only
//   down_bias       f32, (pairs, 32)                                             with bias only
//   gate_up_order   i32, (columns): the input that stands in each column, or -1  act-order only
//   down_order      i32, (columns)                                               act-order only
//
// A panel pair covers 32 outputs for all columns; a column is an input, in act-order permuted so
// that a group is contiguous. Columns are rounded up to whole groups and blocks of 32.
//   values   [block][2 panels][...]  int4: [4][16 outputs][4 bytes], byte i of line j holds columns
//                                    8j+i (low nibble) and 8j+4+i
//                                    int8: [8][16 outputs][4 bytes], byte i of line j holds column
//                                    4j+i, plus 128
//   scales   [group][32] in Format::scale
//   zeros    [group][32] u8, int8 plus 128                                   with zero points only
// A 32-bit lane thus holds four columns of one output: what dot-product units read, and what shifts
// and masks widen. Padding has scale 0. Sections start at multiples of 64 bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "gemm/cpu_layout.h"
#include "gemm/problem.h"
#include "moe/weights.h"

namespace moe::cpu {

inline constexpr int64_t kBlock = 32;  // columns whose products are summed as integers

// A panel pair of a matrix with `inputs` inputs.
struct QuantPanels {
  int64_t columns = 0;
  int64_t groups = 0;
  int64_t group_blocks = 0;  // blocks of one group

  int64_t block_bytes = 0;  // of the values of one block of a pair
  int64_t scales = 0;       // offsets within a pair
  int64_t zeros = 0;
  int64_t pair_bytes = 0;

  int64_t blocks() const { return columns / kBlock; }
};

constexpr int64_t scale_bytes(const Format& format) { return format.scale == DType::f32 ? 4 : 2; }

constexpr QuantPanels quant_panels(const Format& format, int64_t inputs) {
  QuantPanels p;
  const int64_t group = format.group > 0 ? format.group : round_up(inputs, kBlock);
  p.columns = round_up(inputs, group);
  p.groups = p.columns / group;
  p.group_blocks = group / kBlock;
  p.block_bytes = kBlock * kPair / (format.kind == FormatKind::int4 ? 2 : 1);
  p.scales = p.columns / kBlock * p.block_bytes;
  p.zeros = p.scales + round_up(p.groups * kPair * scale_bytes(format), 64);
  p.pair_bytes = p.zeros + (format.zero_points ? round_up(p.groups * kPair, 64) : 0);
  return p;
}

// Needs check_quant_format() too.
struct QuantSections : PairSections {
  QuantPanels gate_up_panels;
  QuantPanels down_panels;

  int64_t gate_up_order = 0;
  int64_t down_order = 0;
};

constexpr QuantSections quant_sections(const ExpertSpec& spec) {
  const QuantPanels gate_up = quant_panels(spec.format, spec.hidden);
  const QuantPanels down = quant_panels(spec.format, spec.intermediate);
  const int64_t order = spec.format.act_order ? int64_t{sizeof(int32_t)} : 0;
  QuantSections s = {pair_sections(spec, gate_up.pair_bytes, down.pair_bytes), gate_up, down};
  s.gate_up_order = s.bytes;
  s.down_order = s.gate_up_order + round_up(gate_up.columns * order, 64);
  s.bytes = s.down_order + round_up(down.columns * order, 64);
  return s;
}

// Where a value of column `column` (within its block) and output `lane` lies in a panel's block.
struct ValueAt {
  int64_t byte = 0;
  int shift = 0;
};
constexpr ValueAt value_at(FormatKind kind, int64_t column, int64_t lane) {
  if (kind == FormatKind::int8) return {column / 4 * 64 + lane * 4 + column % 4, 0};
  return {column / 8 * 64 + lane * 4 + column % 4, column % 8 < 4 ? 0 : 4};
}

}  // namespace moe::cpu
