// The inner loops of the CPU backend, one set per instruction set. All sets compute the same bits:
// every output is its own chain of fused multiply-adds in the order of its inputs.
#pragma once

#include <cstdint>
#include <span>

#include "gemm/cpu_layout.h"

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
};

struct Kernels {
  const char* name;
  bool (*available)();
  int max_rows;  // of a tile

  void (*multiply_f32)(const Multiply&);
  void (*multiply_f16)(const Multiply&);
  void (*multiply_bf16)(const Multiply&);

  // out[i] = activation(gate[i], up[i]); count is a multiple of kPanel. Not gated: gate is unread.
  void (*activate)(const ExpertSpec& spec, const float* gate, const float* up, int64_t count,
                   float* out);
};

// Of this build, best first; the last one runs everywhere.
std::span<const Kernels> all_kernels();

// The first that this machine has.
const Kernels& best_kernels();

}  // namespace moe::cpu
