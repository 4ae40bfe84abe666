// Products of bf16 rows and bf16 weights by the dot products of AVX512-BF16. Intrinsics: Highway
// 1.0.3 has no such target.
#pragma once

#include <algorithm>

#include "gemm/cpu_kernels.h"

namespace moe::cpu {

#if defined(__x86_64__)

void multiply_dot_product(const Multiply& m);
void round_to_bf16(const float* values, int64_t count, uint16_t* out);

inline constexpr Bf16Rows kDotProductRows = {2, kMaxTileRows, false, multiply_dot_product,
                                             round_to_bf16};

bool has_avx512_bf16();

// Bit `bit` of register `reg` (eax, ebx, ecx, edx) of CPUID.
bool cpuid_bit(unsigned leaf, unsigned sub, int reg, int bit);

// Weights that a tile fetches while it is computed: of each panel `bytes_per_pair` for every pair
// of inputs, from `at` on. Null: none.
struct AheadOfTile {
  const char* at = nullptr;
  int64_t bytes_per_pair = 0;
};

// do_block(first input, count, tile, its first row in the chunk, what to fetch meanwhile) for every
// tile, block of inputs by block of inputs: a block of a panel pair stays in the L1 cache.
template <class DoBlock>
void for_each_block(const Multiply& m, DoBlock do_block) {
  constexpr int64_t kBlock = 512;  // inputs: 32 KiB
  const int64_t first_row = m.tiles.first_row(m.first_tile);
  const int64_t share = (kPanel * 2 * int64_t{sizeof(uint16_t)} + m.tile_count - 1) / m.tile_count;
  for (int64_t begin = 0; begin < m.inputs; begin += kBlock) {
    const int64_t count = std::min(kBlock, m.inputs - begin);
    const std::byte* next = m.panels + (begin + count) * kPanel * int64_t{sizeof(uint16_t)};
    if (begin + count == m.inputs) next = m.next_panels;
    for (int64_t t = 0; t < m.tile_count; ++t) {
      const int64_t tile = m.first_tile + t;
      AheadOfTile ahead;
      if (next) ahead = {reinterpret_cast<const char*>(next) + t * count / 2 * share, share};
      do_block(begin, count, tile, m.tiles.first_row(tile) - first_row, ahead);
    }
  }
}

#endif

}  // namespace moe::cpu
