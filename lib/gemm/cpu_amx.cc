#include "gemm/cpu_amx.h"

#if defined(__x86_64__)

#include <cstring>

#include <immintrin.h>

#include "gemm/amx_tiles.h"
#include "gemm/cpu_bf16_rows.h"

#define MOE_AMX __attribute__((target("amx-tile,amx-bf16")))

namespace moe::cpu {
namespace {

constexpr int64_t kTileInputs = 32;                      // of one tile of rows or weights
constexpr int64_t kTileElements = kTileInputs * kPanel;  // of a tile of weights: 1 KiB
constexpr int64_t kSumBytes = kPair * int64_t{sizeof(float)};
constexpr int64_t kElement = sizeof(uint16_t);

// ---- Tiles 0-3: sums of two halves of the rows times two panels; 4, 5: rows; 6, 7: weights.

// Rows of a tile in two halves, the second empty if one AMX tile holds all.
struct Halves {
  int64_t upper, lower;
  explicit Halves(int64_t rows) : upper(rows <= 16 ? rows : (rows + 1) / 2), lower(rows - upper) {}
};

MOE_AMX void configure(const Halves& halves) {
  TileConfig config;
  config.rows[0] = config.rows[1] = config.rows[4] = static_cast<uint8_t>(halves.upper);
  if (halves.lower > 0)
    config.rows[2] = config.rows[3] = config.rows[5] = static_cast<uint8_t>(halves.lower);
  configure_tiles(config);
}

// A block of inputs of one tile of rows.
struct AmxBlock {
  const uint16_t* panels;  // two, `panel_elements` apart
  int64_t panel_elements;
  int64_t inputs;
  const uint16_t* x;  // [inputs / 32][rows][32]
  Halves halves;
  bool first;         // the sums begin here
  AheadOfTile ahead;  // weights to fetch meanwhile, laid out as `panels`
  float* sums;
};

// The row tiles at `x` times two tiles of weights.
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
MOE_AMX void load_sums(const AmxBlock& b) {
  if (b.first) {
    _tile_zero(0);
    _tile_zero(1);
  } else {
    _tile_loadd(0, b.sums, kSumBytes);
    _tile_loadd(1, b.sums + kPanel, kSumBytes);
  }
  if constexpr (kLower) {
    const float* lower = b.sums + b.halves.upper * kPair;
    if (b.first) {
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(2, lower, kSumBytes);
      _tile_loadd(3, lower + kPanel, kSumBytes);
    }
  }
}

template <bool kLower>
MOE_AMX void store_sums(const AmxBlock& b) {
  _tile_stored(0, b.sums, kSumBytes);
  _tile_stored(1, b.sums + kPanel, kSumBytes);
  if constexpr (kLower) {
    float* lower = b.sums + b.halves.upper * kPair;
    _tile_stored(2, lower, kSumBytes);
    _tile_stored(3, lower + kPanel, kSumBytes);
  }
}

// Into L2: a block and the one after it exceed L1.
inline void fetch_lines(const char* begin, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(begin + at, 0, 2);
}

template <bool kLower>
MOE_AMX void amx_block(const AmxBlock& b) {
  finish_stores();
  load_sums<kLower>(b);
  const int64_t step = (b.halves.upper + b.halves.lower) * kTileInputs;
  const int64_t whole = b.inputs / kTileInputs;
  const int64_t bytes_ahead = b.ahead.bytes_per_pair * kTileInputs / 2;
  const uint16_t *x = b.x, *w = b.panels;
  for (int64_t i = 0; i < whole; ++i, x += step, w += kTileElements) {
    if (b.ahead.at) {
      const char* ahead = b.ahead.at + i * bytes_ahead;
      fetch_lines(ahead, bytes_ahead);
      fetch_lines(ahead + b.panel_elements * kElement, bytes_ahead);
    }
    amx_step<kLower>(x, b.halves.upper, w, w + b.panel_elements);
  }
  if (const int64_t rest = b.inputs % kTileInputs; rest > 0) {
    alignas(64) uint16_t padded[2][kTileElements] = {};
    for (int p = 0; p < 2; ++p)
      std::memcpy(padded[p], w + p * b.panel_elements,
                  static_cast<size_t>(rest * kPanel * kElement));
    asm volatile("" : : "r"(padded) : "memory");
    amx_step<kLower>(x, b.halves.upper, padded[0], padded[1]);
  }
  store_sums<kLower>(b);
}

}  // namespace

MOE_AMX void multiply_amx(const Multiply& m) {
  const auto* panels = reinterpret_cast<const uint16_t*>(m.panels);
  const int64_t padded = round_up(m.inputs, kTileInputs);
  int64_t configured = 0;
  for_each_block(
      m, [&](int64_t begin, int64_t count, int64_t t, int64_t row, const AheadOfTile& ahead) {
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

}  // namespace moe::cpu

#endif  // __x86_64__
