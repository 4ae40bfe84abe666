// The inner loops of the CPU backend, one set per instruction set. With rows in f32 all sets
// compute the same bits: every output is its own chain of fused multiply-adds in the order of its
// inputs. Units that take rows in bf16 round in ways of their own; they serve bf16 weights only.
#pragma once

#include <cstdint>
#include <span>

#include "gemm/cpu_layout.h"
#include "moe/expert_gemm.h"

namespace moe::cpu {

// One panel pair times the rows of some tiles.
struct Multiply {
  const std::byte* panels = nullptr;  // two panels
  int64_t inputs = 0;                 // even
  const float* x = nullptr;           // tile after tile, each [inputs][rows of the tile]
  Tiles tiles;                        // of all rows of the expert; `x` begins at first_tile
  int64_t first_tile = 0;
  int64_t tile_count = 0;
  float* sums = nullptr;  // (rows of these tiles, kPair); 64-byte aligned, written
  int64_t group = 0;      // fp8 only: inputs that share a scale, even; 0: all

  // Panels that this thread may read next, fetched ahead; null: unknown.
  const std::byte* next_panels = nullptr;

  const uint16_t* bf16_x = nullptr;  // instead of x, for Bf16Rows
};

// Rows in bf16: a tile is [inputs / unit][rows][unit], zeros after the last input.
struct Bf16Rows {
  int64_t unit = 0;        // inputs of one row that lie side by side, at most 64
  int64_t max_rows = 0;    // of a tile
  bool automatic = false;  // so much faster that rows in bf16 stay bf16 without being asked for
  void (*multiply)(const Multiply&) = nullptr;  // null: the set has none

  // To nearest, ties to even; count is a multiple of kPanel. Subnormal values become 0.
  void (*round)(const float* values, int64_t count, uint16_t* out) = nullptr;
};

struct Kernels {
  const char* name;
  bool (*available)();
  int max_rows;  // of a tile

  void (*multiply_f32)(const Multiply&);
  void (*multiply_f16)(const Multiply&);
  void (*multiply_bf16)(const Multiply&);
  void (*multiply_fp8)(const Multiply&);

  // Of `rows` rows of a panel pair, (rows, kPair), 64-byte aligned, in place. Gated: the first half
  // becomes activation(gate half, up half); not gated: all kPair do. `bias` (kPair) is added
  // before; null: none.
  void (*activate)(const ExpertSpec& spec, const float* bias, int64_t rows, float* sums);

  Bf16Rows bf16;
};

// Whether rows of type `hidden` meet weights of kind `weights` in bf16. Input rows that are bf16
// keep their values (but for an input weight); those between up and down are rounded.
bool takes_bf16_rows(const Kernels& kernels, FormatKind weights, DType hidden, RowPrecision rows);

// Of this build, best first; the last one runs everywhere.
std::span<const Kernels> all_kernels();

// The first that this machine has.
const Kernels& best_kernels();

}  // namespace moe::cpu
