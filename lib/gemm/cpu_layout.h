// How the CPU backend lays out one expert, and how it cuts rows into tiles. Pure arithmetic.
//
//   gate_up       panel pairs over the intermediate size: gate panel, up panel of the same 16
//                 outputs; not gated: two up panels, 32 outputs
//   down          panel pairs over the hidden size, 32 outputs each
//   gate_up_bias  f32, (pairs, 2, 16), as gate_up                                with bias only
//   down_bias     f32, (pairs, 2, 16)                                            with bias only
//
// A panel holds 16 outputs for all inputs, inputs outermost; their number is rounded up to even:
//   f32, f16      [inputs][16]
//   bf16          [inputs / 2][16][2]   one 32-bit lane holds two inputs of one output: a shift and
//                                       a mask widen it, and dot-product units read it as it is
//   fp8_block     [inputs / 2][16][2]   behind each pair of panels its scales, f32 [groups][32]
// Padding is zero. Sections start at multiples of 64 bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "gemm/problem.h"
#include "moe/weights.h"

namespace moe::cpu {

inline constexpr int64_t kPanel = 16;         // outputs of a panel
inline constexpr int64_t kPair = 2 * kPanel;  // outputs of a panel pair

// Inputs whose products are summed in one chain of FMAs; the chains' sums are added in order. Keeps
// the error of long rows near that of short ones, and a block of a panel pair in the L1 cache.
inline constexpr int64_t kChain = 128;

constexpr int64_t element_bytes(FormatKind kind) {
  return kind == FormatKind::f32 ? 4 : kind == FormatKind::fp8_block ? 1 : 2;
}

// Groups of inputs with a scale of their own; 0 where the format has no scales.
constexpr int64_t scale_groups(const Format& format, int64_t inputs) {
  if (format.kind != FormatKind::fp8_block) return 0;
  return format.group > 0 ? (inputs + format.group - 1) / format.group : 1;
}

// A panel pair over `inputs` inputs, an even number.
constexpr int64_t pair_bytes(const Format& format, int64_t inputs) {
  return inputs * kPair * element_bytes(format.kind) +
         scale_groups(format, inputs) * kPair * int64_t{sizeof(float)};
}

// Intermediate outputs that one panel pair of gate_up yields.
constexpr int64_t outputs_of_pair(const ExpertSpec& spec) { return spec.gated ? kPanel : kPair; }

// What slots of every format have, as byte offsets from their start. Needs check_spec().
struct PairSections {
  int64_t gate_up_pairs = 0;
  int64_t down_pairs = 0;
  int64_t gate_up_pair_bytes = 0;
  int64_t down_pair_bytes = 0;

  int64_t gate_up = 0;
  int64_t down = 0;
  int64_t gate_up_bias = 0;
  int64_t down_bias = 0;
  int64_t bytes = 0;  // of the whole slot
};

constexpr PairSections pair_sections(const ExpertSpec& spec, int64_t gate_up_pair_bytes,
                                     int64_t down_pair_bytes) {
  const int64_t outputs = outputs_of_pair(spec);
  const int64_t bias_bytes = spec.bias ? kPair * int64_t{sizeof(float)} : 0;
  PairSections s;
  s.gate_up_pairs = (spec.intermediate + outputs - 1) / outputs;
  s.down_pairs = (spec.hidden + kPair - 1) / kPair;
  s.gate_up_pair_bytes = gate_up_pair_bytes;
  s.down_pair_bytes = down_pair_bytes;
  s.down = s.gate_up_pairs * gate_up_pair_bytes;
  s.gate_up_bias = s.down + s.down_pairs * down_pair_bytes;
  s.down_bias = s.gate_up_bias + s.gate_up_pairs * bias_bytes;
  s.bytes = s.down_bias + s.down_pairs * bias_bytes;
  return s;
}

// Of a format of element_bytes().
struct Sections : PairSections {
  int64_t hidden_inputs = 0;        // hidden, rounded up to even
  int64_t intermediate_inputs = 0;  // intermediate, rounded up to even
};

constexpr Sections sections(const ExpertSpec& spec) {
  const int64_t hidden = round_up(spec.hidden, 2), intermediate = round_up(spec.intermediate, 2);
  return {
      pair_sections(spec, pair_bytes(spec.format, hidden), pair_bytes(spec.format, intermediate)),
      hidden, intermediate};
}

// Where weights narrower than f32 are widened. In registers: each weight is read from memory once
// and widened by every tile, which costs nothing while memory is the limit. In the cache: a block
// of a panel pair is widened once and all tiles read it as f32, which leaves the vector units to
// FMAs.
enum class Widening { in_registers, in_cache };

constexpr Widening choose_widening(size_t weight_bytes, int64_t tiles) {
  constexpr int64_t kManyTiles = 3;
  return weight_bytes < sizeof(float) && tiles >= kManyTiles ? Widening::in_cache
                                                             : Widening::in_registers;
}

// No instruction set has registers for more.
inline constexpr int64_t kMaxTileRows = 12;

// How many rows a tile has at most: a set of kernels may have other loops for experts of few rows.
struct TileRows {
  int64_t most = 0;
  int64_t few = 0;          // an expert has few rows if it has no more than this
  int64_t most_of_few = 0;  // of a tile of such an expert; not above `most`

  constexpr int64_t of(int64_t rows) const { return rows <= few ? most_of_few : most; }
};

// `rows` rows cut into the fewest tiles of at most `most` rows, as even as possible: a last tile of
// one row would cost as much weight traffic as a full one.
struct Tiles {
  int64_t rows = 0;
  int64_t count = 0;

  constexpr Tiles() = default;
  constexpr Tiles(int64_t row_count, int64_t most)
      : rows(row_count), count((row_count + most - 1) / most) {}
  constexpr int64_t first_row(int64_t tile) const {
    return tile * (rows / count) + std::min(tile, rows % count);
  }
  constexpr int64_t size(int64_t tile) const { return rows / count + (tile < rows % count); }
};

}  // namespace moe::cpu
