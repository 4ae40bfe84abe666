// The inner loops over int8 and int4 weights, one set per instruction set. All sets compute the
// same bits: products of a block of 32 columns are summed as integers, blocks in order as fp32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "gemm/cpu_layout.h"
#include "moe/tensor.h"
#include "moe/weights.h"

namespace moe::cpu {

// The values of one panel pair with their scales and zeros, from its first column on.
struct QuantPair {
  const std::byte* values = nullptr;
  const std::byte* scales = nullptr;
  const std::byte* zeros = nullptr;  // null: none
  DType scale = DType::f32;
  int64_t blocks = 0;
  int64_t group_blocks = 1;
};

// Rows in q8 (quant/q8.h), tile after tile; a tile of R rows over B blocks is
//   int8     [B][R][32]   the integers
//   Q8Scale  [B][R]
struct Q8Scale {
  float scale;
  int32_t minus_sum;  // minus the sum of the integers
};
inline constexpr int64_t kQ8RowBytes = 32 + sizeof(Q8Scale);  // of one block of one row

// One panel pair times the rows of some tiles.
struct QuantMultiply {
  QuantPair pair;
  const std::byte* x = nullptr;  // begins at first_tile
  Tiles tiles;                   // of all rows of the expert
  int64_t first_tile = 0;
  int64_t tile_count = 0;
  float* sums = nullptr;  // (rows of these tiles, kPair); 64-byte aligned, written

  // How far on lies the pair that this thread may read next, which is fetched ahead; 0: unknown.
  int64_t pair_bytes_ahead = 0;
};

// Blocks [first, first + count) of a pair as two f32 panels [2][count * 32][16].
struct QuantWiden {
  QuantPair pair;
  int64_t first = 0;
  int64_t count = 0;
  float* out = nullptr;  // 64-byte aligned
};

struct QuantKernels {
  const char* name;
  bool (*available)();
  TileRows tile_rows;

  void (*multiply_int8)(const QuantMultiply&);
  void (*multiply_int4)(const QuantMultiply&);
  void (*widen_int8)(const QuantWiden&);
  void (*widen_int4)(const QuantWiden&);

  // 32 values become 32 integers and their scale.
  void (*encode_q8)(const float* values, int8_t* q, Q8Scale* scale);
};

// Of this build, best first; the last one runs everywhere.
std::span<const QuantKernels> all_quant_kernels();

// The first that this machine has.
const QuantKernels& best_quant_kernels();

}  // namespace moe::cpu
