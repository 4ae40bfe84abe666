#include "gemm/cpu_bf16_rows.h"

#if defined(__x86_64__)

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOE_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define MOE_AMX __attribute__((target("amx-tile,amx-bf16")))
#if defined(__clang__)
#define MOE_UNROLL _Pragma("unroll")
#else
#define MOE_UNROLL _Pragma("GCC unroll 32")
#endif

namespace moe::cpu {
namespace {

constexpr int64_t kTileInputs = 32;                      // of one A or B tile of AMX
constexpr int64_t kTileElements = kTileInputs * kPanel;  // of a B tile: 1 KiB
constexpr int64_t kBlock = 512;  // inputs of a panel pair that stay in the L1 cache: 32 KiB

bool cpuid_bit(unsigned leaf, unsigned sub, int reg, int bit) {
  unsigned r[4] = {};
  return __get_cpuid_count(leaf, sub, &r[0], &r[1], &r[2], &r[3]) && (r[reg] >> bit & 1);
}

__attribute__((target("xsave"))) bool system_saves_tiles() {
  constexpr uint64_t kTileState = uint64_t{3} << 17;
  return cpuid_bit(1, 0, 2, 27) && (_xgetbv(0) & kTileState) == kTileState;
}

bool allow_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// ---- AMX. Tiles 0-3: sums of two halves of the rows times two panels; 4, 5: rows; 6, 7: weights.

// Of 64 bytes, as LDTILECFG reads it.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {};

  TileConfig(int64_t upper, int64_t lower) {
    for (int t = 0; t < 8; ++t) rows[t] = 16;
    rows[0] = rows[1] = rows[4] = static_cast<uint8_t>(upper);
    if (lower > 0) rows[2] = rows[3] = rows[5] = static_cast<uint8_t>(lower);
  }
};

// Rows of a tile in two halves, the second empty if one A tile holds all.
struct Halves {
  int64_t upper, lower;
  explicit Halves(int64_t rows) : upper(rows <= 16 ? rows : (rows + 1) / 2), lower(rows - upper) {}
};

MOE_AMX void configure(const Halves& halves) {
  const TileConfig config(halves.upper, halves.lower);
  _tile_loadconfig(&config);
}

// A block of inputs of one tile of rows.
struct AmxBlock {
  const uint16_t* panels;  // two, `panel_elements` apart
  int64_t panel_elements;
  int64_t inputs;
  const uint16_t* x;  // [inputs / 32][rows][32]
  Halves halves;
  bool first;         // the sums begin here
  const char* ahead;  // weights to fetch meanwhile, laid out as `panels`; null: none
  float* sums;
};

constexpr int64_t kSumBytes = kPair * int64_t{sizeof(float)};

// One step: the row tiles at `x` times two weight tiles.
template <bool kLower>
MOE_AMX inline void amx_step(const uint16_t* x, int64_t upper, const uint16_t* w0,
                             const uint16_t* w1) {
  _tile_loadd(6, w0, 64);
  _tile_loadd(4, x, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, w1, 64);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (kLower) {
    _tile_loadd(5, x + upper * kTileInputs, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

template <bool kLower>
MOE_AMX void amx_block(const AmxBlock& b) {
  float* lower_sums = b.sums + b.halves.upper * kPair;
  if (b.first) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kLower) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, b.sums, kSumBytes);
    _tile_loadd(1, b.sums + kPanel, kSumBytes);
    if constexpr (kLower) {
      _tile_loadd(2, lower_sums, kSumBytes);
      _tile_loadd(3, lower_sums + kPanel, kSumBytes);
    }
  }
  const int64_t step = (b.halves.upper + b.halves.lower) * kTileInputs;
  const int64_t panel_bytes = b.panel_elements * int64_t{sizeof(uint16_t)};
  const uint16_t *x = b.x, *w = b.panels;
  const int64_t whole = b.inputs / kTileInputs;
  for (int64_t i = 0; i < whole; ++i, x += step, w += kTileElements) {
    if (b.ahead) {
      const char* line = b.ahead + i * kTileElements * int64_t{sizeof(uint16_t)};
      for (int l = 0; l < 16; ++l) {
        __builtin_prefetch(line + l * 64);
        __builtin_prefetch(line + panel_bytes + l * 64);
      }
    }
    amx_step<kLower>(x, b.halves.upper, w, w + b.panel_elements);
  }
  if (const int64_t rest = b.inputs % kTileInputs; rest > 0) {
    alignas(64) uint16_t padded[2][kTileElements] = {};
    for (int p = 0; p < 2; ++p)
      std::memcpy(padded[p], w + p * b.panel_elements,
                  static_cast<size_t>(rest * kPanel) * sizeof(uint16_t));
    amx_step<kLower>(x, b.halves.upper, padded[0], padded[1]);
  }
  _tile_stored(0, b.sums, kSumBytes);
  _tile_stored(1, b.sums + kPanel, kSumBytes);
  if constexpr (kLower) {
    _tile_stored(2, lower_sums, kSumBytes);
    _tile_stored(3, lower_sums + kPanel, kSumBytes);
  }
}

// ---- AVX512-BF16

template <int kRows>
MOE_AVX512 void dot_product_tile(const uint16_t* panels, int64_t panel_elements, const uint16_t* x,
                                 int64_t pairs, bool first, float* sums, const char* ahead) {
  __m512 acc[kRows][2];
  MOE_UNROLL for (int r = 0; r < kRows; ++r) {
    MOE_UNROLL for (int v = 0; v < 2; ++v) acc[r][v] =
        first ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * kPair + v * kPanel);
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    if (ahead) {
      __builtin_prefetch(ahead + pair * 64);
      __builtin_prefetch(ahead + pair * 64 + panel_elements * int64_t{sizeof(uint16_t)});
    }
    const uint16_t* at = panels + pair * kPair;
    const auto w0 = (__m512bh)_mm512_load_si512(at);
    const auto w1 = (__m512bh)_mm512_load_si512(at + panel_elements);
    MOE_UNROLL for (int r = 0; r < kRows; ++r) {
      int both;
      std::memcpy(&both, x + (pair * kRows + r) * 2, sizeof both);
      const auto input = (__m512bh)_mm512_set1_epi32(both);
      acc[r][0] = _mm512_dpbf16_ps(acc[r][0], w0, input);
      acc[r][1] = _mm512_dpbf16_ps(acc[r][1], w1, input);
    }
  }
  MOE_UNROLL for (int r = 0; r < kRows; ++r) {
    MOE_UNROLL for (int v = 0; v < 2; ++v)
        _mm512_store_ps(sums + r * kPair + v * kPanel, acc[r][v]);
  }
}

template <int... kRowsLess1>
constexpr auto dot_product_tiles(std::integer_sequence<int, kRowsLess1...>) {
  return std::array{&dot_product_tile<kRowsLess1 + 1>...};
}

// do_block(first input, count, tile, its first row in the chunk, what to fetch meanwhile) for every
// tile, block of inputs by block of inputs.
template <class DoBlock>
void for_each_block(const Multiply& m, DoBlock do_block) {
  const int64_t first_row = m.tiles.first_row(m.first_tile);
  for (int64_t begin = 0; begin < m.inputs; begin += kBlock) {
    const int64_t count = std::min(kBlock, m.inputs - begin);
    const std::byte* next = m.panels + (begin + count) * kPanel * int64_t{sizeof(uint16_t)};
    const auto* ahead = begin + count < m.inputs ? reinterpret_cast<const char*>(next) : nullptr;
    for (int64_t t = m.first_tile; t < m.first_tile + m.tile_count; ++t)
      do_block(begin, count, t, m.tiles.first_row(t) - first_row,
               t == m.first_tile ? ahead : nullptr);
  }
}

}  // namespace

bool has_avx512_bf16() {
  constexpr int kEax = 0, kEbx = 1;
  static const bool yes = cpuid_bit(7, 1, kEax, 5) && cpuid_bit(7, 0, kEbx, 30) &&
                          __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  return yes;
}

bool has_amx() {
  constexpr int kEdx = 3, kBf16 = 22, kTile = 24;
  static const bool yes = has_avx512_bf16() && cpuid_bit(7, 0, kEdx, kBf16) &&
                          cpuid_bit(7, 0, kEdx, kTile) && system_saves_tiles() && allow_tiles();
  return yes;
}

MOE_AMX void multiply_amx(const Multiply& m) {
  const auto* panels = reinterpret_cast<const uint16_t*>(m.panels);
  const int64_t padded = round_up(m.inputs, kTileInputs);
  int64_t configured = 0;
  for_each_block(m, [&](int64_t begin, int64_t count, int64_t t, int64_t row, const char* ahead) {
    const int64_t rows = m.tiles.size(t);
    const Halves halves(rows);
    if (rows != configured) configure(halves);
    configured = rows;
    const AmxBlock block = {panels + begin * kPanel,
                            m.inputs * kPanel,
                            count,
                            m.bf16_x + row * padded + begin * rows,
                            halves,
                            begin == 0,
                            ahead,
                            m.sums + row * kPair};
    halves.lower > 0 ? amx_block<true>(block) : amx_block<false>(block);
  });
  _tile_release();
}

void multiply_dot_product(const Multiply& m) {
  static constexpr auto kTiles =
      dot_product_tiles(std::make_integer_sequence<int, int{kMaxTileRows}>());
  const auto* panels = reinterpret_cast<const uint16_t*>(m.panels);
  for_each_block(m, [&](int64_t begin, int64_t count, int64_t t, int64_t row, const char* ahead) {
    const int64_t rows = m.tiles.size(t);
    kTiles[static_cast<size_t>(rows - 1)](panels + begin * kPanel, m.inputs * kPanel,
                                          m.bf16_x + row * m.inputs + begin * rows, count / 2,
                                          begin == 0, m.sums + row * kPair, ahead);
  });
}

MOE_AVX512 void round_to_bf16(const float* values, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; i += kPanel)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                        (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(values + i)));
}

}  // namespace moe::cpu

#endif  // __x86_64__
