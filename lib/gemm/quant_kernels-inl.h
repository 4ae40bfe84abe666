// The kernels themselves, for the instruction set HWY_TARGET. Included once per target.
#if defined(MOE_QUANT_KERNELS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_QUANT_KERNELS_INL
#undef MOE_QUANT_KERNELS_INL
#else
#define MOE_QUANT_KERNELS_INL
#endif

// As in cpu_kernels-inl.h: register tiles stay in registers only if every loop is unrolled.
#if defined(__clang__)
#define MOE_UNROLL _Pragma("unroll")
#else
#define MOE_UNROLL _Pragma("GCC unroll 32")
#endif

#include "gemm/quant_layout.h"
#include "quant/half.h"
#include "quant/q8.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET == HWY_AVX3_DL
HWY_PUSH_ATTRIBUTES("avx512vnni")  // Highway 1.0 leaves it out
#endif
namespace moe::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using QD = hn::CappedTag<float, kPanel>;
using QV = hn::Vec<QD>;
using QI = hn::RebindToSigned<QD>;
using QU = hn::RebindToUnsigned<QD>;
using QVI = hn::Vec<QI>;  // lane: one output; four columns of it, or their sum
constexpr int kQLanes = hn::MaxLanes(QD());
constexpr int kQPairVectors = kPair / kQLanes;

// Sums of products that stay in registers beside the weights and one input.
// kQShare: there are registers for the weights of all outputs of a tile, so that each input is
// loaded once.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
constexpr bool kQShare = true;
constexpr int kQRegisters = 24;
constexpr int kQMaxRows = 12;
#elif HWY_TARGET == HWY_AVX2
constexpr bool kQShare = false;
constexpr int kQRegisters = 10;
constexpr int kQMaxRows = 10;
#else
constexpr bool kQShare = false;
constexpr int kQRegisters = 8;
constexpr int kQMaxRows = 4;
#endif
static_assert(kQMaxRows <= kMaxTileRows);

HWY_INLINE QV q_fma(QV a, QV b, QV c) {
#if HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR
  alignas(64) float x[kQLanes], y[kQLanes], z[kQLanes];
  hn::Store(a, QD(), x);
  hn::Store(b, QD(), y);
  hn::Store(c, QD(), z);
  for (int i = 0; i < kQLanes; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(QD(), z);
#else
  return hn::MulAdd(a, b, c);
#endif
}

// ---- dot products of four columns
//
// dot4_small(): weights 0 to 15, eight calls may be summed before total().
// dot4_byte(): weights 0 to 255 minus kByteShift; total() is not applied.
// kWholeSums: total() does nothing, so that a sum may begin with any integer.

HWY_INLINE QVI four_inputs(const int8_t* q) {
  int32_t word;
  std::memcpy(&word, q, sizeof word);
  return hn::Set(QI(), word);
}

#if HWY_TARGET == HWY_AVX3_DL
constexpr bool kWholeSums = true;
constexpr int kByteShift = 0;
// As an intrinsic GCC 12 gives each result a new register, so the sums of 12 rows spill: 1.9 times
// slower for int8.
HWY_INLINE QVI dot4_small(QVI sum, QVI weights, QVI x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(weights.raw), "v"(x.raw));
  return sum;
}
HWY_INLINE QVI dot4_byte(QVI sum, QVI weights, QVI x) { return dot4_small(sum, weights, x); }
HWY_INLINE QVI total(QVI sum) { return sum; }
struct ByteWeights {
  QVI weights;
  ByteWeights() = default;
  explicit HWY_INLINE ByteWeights(QVI stored) : weights(stored) {}
  HWY_INLINE QVI dot(QVI sum, QVI x) const { return dot4_byte(sum, weights, x); }
};
#elif HWY_TARGET == HWY_AVX3
constexpr bool kWholeSums = false;
constexpr int kByteShift = 128;
// 16-bit sums: 8 * 2 * 15 * 127 < 2^15.
HWY_INLINE QVI dot4_small(QVI sum, QVI weights, QVI x) {
  return QVI{_mm512_add_epi16(sum.raw, _mm512_maddubs_epi16(weights.raw, x.raw))};
}
HWY_INLINE QVI total(QVI sum) { return QVI{_mm512_madd_epi16(sum.raw, _mm512_set1_epi16(1))}; }
struct ByteWeights {
  __m512i size;
  __mmask64 negative;
  ByteWeights() = default;
  explicit HWY_INLINE ByteWeights(QVI stored) {
    const __m512i weights = _mm512_xor_si512(stored.raw, _mm512_set1_epi8(-128));
    size = _mm512_abs_epi8(weights);
    negative = _mm512_movepi8_mask(weights);
  }
  // |weight| <= 128 and |x| <= 127: two products fit into 16 bits.
  HWY_INLINE QVI dot(QVI sum, QVI x) const {
    const __m512i flipped = _mm512_mask_sub_epi8(x.raw, negative, _mm512_setzero_si512(), x.raw);
    const __m512i pairs = _mm512_maddubs_epi16(size, flipped);
    return QVI{_mm512_add_epi32(sum.raw, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
  }
};
#elif HWY_TARGET == HWY_AVX2
constexpr bool kWholeSums = false;
constexpr int kByteShift = 128;
// 16-bit sums: 8 * 2 * 15 * 127 < 2^15.
HWY_INLINE QVI dot4_small(QVI sum, QVI weights, QVI x) {
  return QVI{_mm256_add_epi16(sum.raw, _mm256_maddubs_epi16(weights.raw, x.raw))};
}
HWY_INLINE QVI total(QVI sum) { return QVI{_mm256_madd_epi16(sum.raw, _mm256_set1_epi16(1))}; }
struct ByteWeights {
  __m256i weights, size;
  ByteWeights() = default;
  explicit HWY_INLINE ByteWeights(QVI stored)
      : weights(_mm256_xor_si256(stored.raw, _mm256_set1_epi8(-128))),
        size(_mm256_abs_epi8(weights)) {}
  // |weight| <= 128 and |x| <= 127: two products fit into 16 bits.
  HWY_INLINE QVI dot(QVI sum, QVI x) const {
    const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x.raw, weights));
    return QVI{_mm256_add_epi32(sum.raw, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
  }
};
#else
constexpr bool kWholeSums = true;
constexpr int kByteShift = 0;
// Byte `kByte` of each lane, x sign-extended and weights not.
template <int kByte>
HWY_INLINE QVI dot1(QVI sum, QVI weights, QVI x) {
  const auto weight =
      hn::And(hn::ShiftRight<8 * kByte>(hn::BitCast(QU(), weights)), hn::Set(QU(), 0xff));
  const QVI input = hn::ShiftRight<24>(hn::ShiftLeft<24 - 8 * kByte>(x));
  return hn::Add(sum, hn::Mul(hn::BitCast(QI(), weight), input));
}
HWY_INLINE QVI dot4_small(QVI sum, QVI weights, QVI x) {
  return dot1<3>(dot1<2>(dot1<1>(dot1<0>(sum, weights, x), weights, x), weights, x), weights, x);
}
HWY_INLINE QVI total(QVI sum) { return sum; }
struct ByteWeights {
  QVI weights;
  ByteWeights() = default;
  explicit HWY_INLINE ByteWeights(QVI stored) : weights(stored) {}
  HWY_INLINE QVI dot(QVI sum, QVI x) const { return dot4_small(sum, weights, x); }
};
#endif

// ---- formats: line `line` (64 bytes) of a panel's block, outputs from `lane` on

HWY_INLINE QVI load_lanes(const uint8_t* panel, int64_t line, int64_t lane) {
  return hn::Load(QI(), reinterpret_cast<const int32_t*>(panel + line * 64 + lane * 4));
}

struct QInt4 {
  static constexpr int kLines = 4;
  static constexpr int kLineColumns = 8;
  static constexpr int64_t kPanelBytes = kLines * 64;
  static constexpr int kZero = 8;
  static constexpr int kShift = 0;  // what zeros lose because weights lost it

  struct Weights {
    QVI low, high;
    Weights() = default;
    HWY_INLINE Weights(const uint8_t* panel, int64_t line, int64_t lane) {
      const auto both = hn::BitCast(QU(), load_lanes(panel, line, lane));
      const auto mask = hn::Set(QU(), 0x0f0f0f0fu);
      low = hn::BitCast(QI(), hn::And(both, mask));
      high = hn::BitCast(QI(), hn::And(hn::ShiftRight<4>(both), mask));
    }
    HWY_INLINE QVI dot(QVI sum, const int8_t* q) const {
      return dot4_small(dot4_small(sum, low, four_inputs(q)), high, four_inputs(q + 4));
    }
  };
  static constexpr bool kWhole = kWholeSums;
  static HWY_INLINE QVI finish(QVI sum) { return total(sum); }

  // Column `kColumn` of a line as integers.
  template <int kColumn>
  static HWY_INLINE QVI column(QVI line) {
    const auto shifted = hn::ShiftRight<kColumn % 4 * 8 + kColumn / 4 * 4>(hn::BitCast(QU(), line));
    return hn::BitCast(QI(), hn::And(shifted, hn::Set(QU(), 0xf)));
  }
};

struct QInt8 {
  static constexpr int kLines = 8;
  static constexpr int kLineColumns = 4;
  static constexpr int64_t kPanelBytes = kLines * 64;
  static constexpr int kZero = 128;
  static constexpr int kShift = kByteShift;

  struct Weights {
    ByteWeights weights;
    Weights() = default;
    HWY_INLINE Weights(const uint8_t* panel, int64_t line, int64_t lane)
        : weights(load_lanes(panel, line, lane)) {}
    HWY_INLINE QVI dot(QVI sum, const int8_t* q) const { return weights.dot(sum, four_inputs(q)); }
  };
  static constexpr bool kWhole = true;
  static HWY_INLINE QVI finish(QVI sum) { return sum; }

  template <int kColumn>
  static HWY_INLINE QVI column(QVI line) {
    const auto shifted = hn::ShiftRight<kColumn * 8>(hn::BitCast(QU(), line));
    return hn::BitCast(QI(), hn::And(shifted, hn::Set(QU(), 0xff)));
  }
};

// ---- scales and zeros of some blocks, as f32

constexpr int64_t kRange = 16;       // blocks: their values and scales stay in the L1 cache
constexpr int64_t kRangesAhead = 2;  // that are fetched meanwhile: of int4 18 KB

struct Factors {
  alignas(64) float scales[kRange * kPair];
  alignas(64) float zeros[kRange * kPair];  // counted after kShift; unset if the pair has none
};

template <class Load>
HWY_INLINE void spread(const QuantPair& pair, int64_t first, int64_t count, float* out, Load load) {
  for (int64_t b = 0; b < count; ++b) {
    const int64_t at = (first + b) / pair.group_blocks * kPair;
    for (int64_t i = 0; i < kPair; i += kQLanes) hn::Store(load(at + i), QD(), out + b * kPair + i);
  }
}

// The scales and zeros of the range from block `first` on, of the pair that lies `ahead` bytes on.
inline void fetch_factors(const QuantPair& pair, int64_t first, int64_t ahead) {
  const int64_t last = std::min(first + kRange, pair.blocks) - 1;
  const int64_t begin = first / pair.group_blocks * kPair;
  const int64_t end = (last / pair.group_blocks + 1) * kPair;
  const int64_t each = pair.scale == DType::f32 ? 4 : 2;
  for (int64_t at = begin * each; at < end * each; at += 64)
    __builtin_prefetch(pair.scales + ahead + at);
  for (int64_t at = begin; pair.zeros && at < end; at += 64)
    __builtin_prefetch(pair.zeros + ahead + at);
}

template <class W>
HWY_INLINE void load_factors(const QuantPair& pair, int64_t first, int64_t count, int shift,
                             Factors* out) {
  const auto* words = reinterpret_cast<const float*>(pair.scales);
  const auto* halves = reinterpret_cast<const uint16_t*>(pair.scales);
  if (pair.scale == DType::f32)
    spread(pair, first, count, out->scales, [&](int64_t i) { return hn::Load(QD(), words + i); });
  else if (pair.scale == DType::bf16)
    spread(pair, first, count, out->scales, [&](int64_t i) {
      const hn::Rebind<uint16_t, QD> half;
      const auto wide = hn::PromoteTo(QU(), hn::Load(half, halves + i));
      return hn::BitCast(QD(), hn::ShiftLeft<16>(wide));
    });
  else
    spread(pair, first, count, out->scales, [&](int64_t i) {
      const hn::Rebind<hwy::float16_t, QD> half;
      return hn::PromoteTo(QD(),
                           hn::Load(half, reinterpret_cast<const hwy::float16_t*>(halves + i)));
    });
  if (!pair.zeros) return;
  const auto* bytes = reinterpret_cast<const uint8_t*>(pair.zeros);
  spread(pair, first, count, out->zeros, [&](int64_t i) {
    const hn::Rebind<uint8_t, QD> byte;
    const QVI wide = hn::PromoteTo(QI(), hn::Load(byte, bytes + i));
    return hn::ConvertTo(QD(), hn::Sub(wide, hn::Set(QI(), shift)));
  });
}

// ---- products

// Some blocks of a pair times the rows of a tile.
struct QBlocks {
  const uint8_t* values;
  int64_t blocks;
  const int8_t* q;
  const Q8Scale* rows;
  bool first;  // the sums begin here
  float* sums;
  const uint8_t* ahead;  // values to fetch meanwhile, of each block ahead_lines cache lines
  int64_t ahead_lines;
};

// What a uniform zero point adds to the dot products of a row.
template <class W>
HWY_INLINE QVI shift_of_zero(int32_t minus_sum) {
  constexpr int kOffset = W::kZero - W::kShift;
  static_assert(kOffset == 0 || kOffset == 8 || kOffset == 128);
  if constexpr (kOffset == 0) return hn::Zero(QI());
  return hn::ShiftLeft < kOffset == 8 ? 3 : 7 > (hn::Set(QI(), minus_sum));
}

// kRows rows times kVectors vectors of outputs from `lane` (of 32) on. kZeros: each group of an
// output has its zero point.
template <class W, int kRows, int kVectors, bool kZeros>
HWY_INLINE void q_tile(const QBlocks& m, const Factors& factors, int64_t lane) {
  constexpr bool kKeep = 2 * kRows * kVectors <= kQRegisters;  // totals in registers too
  constexpr bool kStart = W::kWhole && !kZeros;                // sums begin with the zero's share
  QV totals[kRows][kVectors];
  float* const sums = m.sums + lane;
  if constexpr (kKeep) {
    MOE_UNROLL for (int r = 0; r < kRows; ++r) {
      MOE_UNROLL for (int v = 0; v < kVectors; ++v) {
        totals[r][v] = m.first ? hn::Zero(QD()) : hn::Load(QD(), sums + r * kPair + v * kQLanes);
      }
    }
  } else if (m.first) {
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v)
        hn::Store(hn::Zero(QD()), QD(), sums + r * kPair + v * kQLanes);
  }
  for (int64_t b = 0; b < m.blocks; ++b) {
    const uint8_t* block = m.values + b * 2 * W::kPanelBytes;
    const uint8_t* ahead = m.ahead + b * 2 * W::kPanelBytes;
    for (int64_t l = 0; l < m.ahead_lines; ++l) __builtin_prefetch(ahead + l * 64);
    const int8_t* rows = m.q + b * kRows * kBlock;
    const Q8Scale* row = m.rows + b * kRows;
    QVI acc[kRows][kVectors];
    MOE_UNROLL for (int r = 0; r < kRows; ++r) {
      const QVI start = kStart ? shift_of_zero<W>(row[r].minus_sum) : hn::Zero(QI());
      MOE_UNROLL for (int v = 0; v < kVectors; ++v) acc[r][v] = start;
    }
    for (int line = 0; line < W::kLines; ++line) {
      const int8_t* x = rows + line * W::kLineColumns;
      if constexpr (kQShare) {
        typename W::Weights w[kVectors];
        MOE_UNROLL for (int v = 0; v < kVectors; ++v) {
          const int64_t at = lane + v * kQLanes;
          w[v] = typename W::Weights(block + at / kPanel * W::kPanelBytes, line, at % kPanel);
        }
        MOE_UNROLL for (int r = 0; r < kRows; ++r) {
          MOE_UNROLL for (int v = 0; v < kVectors; ++v) acc[r][v] =
              w[v].dot(acc[r][v], x + r * kBlock);
        }
      } else {
        MOE_UNROLL for (int v = 0; v < kVectors; ++v) {
          const int64_t at = lane + v * kQLanes;
          const typename W::Weights w(block + at / kPanel * W::kPanelBytes, line, at % kPanel);
          MOE_UNROLL for (int r = 0; r < kRows; ++r) acc[r][v] = w.dot(acc[r][v], x + r * kBlock);
        }
      }
    }
    MOE_UNROLL for (int r = 0; r < kRows; ++r) {
      const QV row_scale = hn::Set(QD(), row[r].scale);
      QVI more = hn::Zero(QI());
      QV minus_sum = hn::Zero(QD());
      if constexpr (!kStart && !kZeros) more = shift_of_zero<W>(row[r].minus_sum);
      if constexpr (kZeros) minus_sum = hn::ConvertTo(QD(), hn::Set(QI(), row[r].minus_sum));
      MOE_UNROLL for (int v = 0; v < kVectors; ++v) {
        const int64_t at = b * kPair + lane + v * kQLanes;
        QVI whole = W::finish(acc[r][v]);
        if constexpr (!kStart && !kZeros) whole = hn::Add(whole, more);
        QV dot = hn::ConvertTo(QD(), whole);  // exact, as is the next one
        if constexpr (kZeros) dot = q_fma(hn::Load(QD(), factors.zeros + at), minus_sum, dot);
        const QV scaled = hn::Mul(dot, row_scale), scale = hn::Load(QD(), factors.scales + at);
        if constexpr (kKeep) {
          totals[r][v] = q_fma(scaled, scale, totals[r][v]);
        } else {
          float* sum = sums + r * kPair + v * kQLanes;
          hn::Store(q_fma(scaled, scale, hn::Load(QD(), sum)), QD(), sum);
        }
      }
    }
  }
  if constexpr (kKeep) {
    MOE_UNROLL for (int r = 0; r < kRows; ++r) {
      MOE_UNROLL for (int v = 0; v < kVectors; ++v) {
        hn::Store(totals[r][v], QD(), sums + r * kPair + v * kQLanes);
      }
    }
  }
}

template <class W, int kRows, bool kZeros>
HWY_NOINLINE void q_multiply_tile(const QBlocks& m, const Factors& factors) {
  constexpr int kMost = kQRegisters / kRows;
  constexpr int kVectors = kMost >= kQPairVectors ? kQPairVectors
                           : kMost >= 4           ? 4
                           : kMost >= 2           ? 2
                                                  : 1;
  static_assert(kQPairVectors % kVectors == 0);
  for (int64_t lane = 0; lane < kPair; lane += kVectors * kQLanes)
    q_tile<W, kRows, kVectors, kZeros>(m, factors, lane);
}

template <class W, bool kZeros, int... kRowsLess1>
constexpr auto q_tile_functions(std::integer_sequence<int, kRowsLess1...>) {
  return std::array{&q_multiply_tile<W, kRowsLess1 + 1, kZeros>...};
}

// do_tile(rows, blocks, factors) for every tile, range by range: a range's weights and factors stay
// in the L1 cache for all tiles, which fetch their shares of one further on. read(values, count)
// says where the kernels find the weights of a range; `shift` is what zeros lose because those
// weights lost it.
template <class W, class Read, class DoTile>
HWY_INLINE void for_each_range(const QuantMultiply& m, int shift, Read read, DoTile do_tile) {
  const auto* values = reinterpret_cast<const uint8_t*>(m.pair.values);
  const int64_t first_row = m.tiles.first_row(m.first_tile), blocks = m.pair.blocks;
  for (int64_t begin = 0; begin < blocks; begin += kRange) {
    const int64_t count = std::min(kRange, blocks - begin);
    const uint8_t* range = values + begin * 2 * W::kPanelBytes;
    Factors factors;
    load_factors<W>(m.pair, begin, count, shift, &factors);
    int64_t next = begin + kRangesAhead * kRange;
    const bool beyond = next >= blocks;  // of the pair that is next
    if (beyond) next -= round_up(blocks, kRange);
    const int64_t bytes_ahead = beyond ? m.pair_bytes_ahead : 0;
    fetch_factors(m.pair, next, bytes_ahead);
    const uint8_t* ahead = values + next * 2 * W::kPanelBytes + bytes_ahead;
    const uint8_t* weights = read(range, count);
    const int64_t lines = beyond && bytes_ahead == 0 ? 0 : 2 * W::kLines;
    for (int64_t t = m.first_tile; t < m.first_tile + m.tile_count; ++t) {
      const int64_t row = m.tiles.first_row(t) - first_row, rows = m.tiles.size(t);
      const std::byte* tile = m.x + row * blocks * kQ8RowBytes;
      const auto* q = reinterpret_cast<const int8_t*>(tile);
      const auto* scales = reinterpret_cast<const Q8Scale*>(tile + rows * blocks * kBlock);
      const int64_t line = lines * (t - m.first_tile) / m.tile_count;
      const int64_t line_end = lines * (t + 1 - m.first_tile) / m.tile_count;
      do_tile(rows,
              QBlocks{weights, count, q + begin * rows * kBlock, scales + begin * rows, begin == 0,
                      m.sums + row * kPair, ahead + line * 64, line_end - line},
              factors);
    }
  }
}

template <class W>
void q_multiply(const QuantMultiply& m) {
  using Rows = std::make_integer_sequence<int, kQMaxRows>;
  static constexpr auto kUniform = q_tile_functions<W, false>(Rows());
  static constexpr auto kWithZeros = q_tile_functions<W, true>(Rows());
  const auto& tiles = m.pair.zeros ? kWithZeros : kUniform;
  for_each_range<W>(
      m, W::kShift, [](const uint8_t* values, int64_t) { return values; },
      [&](int64_t rows, const QBlocks& blocks, const Factors& factors) {
        tiles[rows - 1](blocks, factors);
      });
}

// ---- weights as floats

template <class W, int kColumn>
HWY_INLINE void widen_columns(QVI line, QV zero, QV scale, float* out) {
  if constexpr (kColumn < W::kLineColumns) {
    const QV value = hn::Sub(hn::ConvertTo(QD(), W::template column<kColumn>(line)), zero);
    hn::Store(hn::Mul(value, scale), QD(), out + kColumn * kPanel);
    widen_columns<W, kColumn + 1>(line, zero, scale, out);
  }
}

template <class W>
void q_widen(const QuantWiden& m) {
  const auto* values = reinterpret_cast<const uint8_t*>(m.pair.values);
  for (int64_t begin = 0; begin < m.count; begin += kRange) {
    const int64_t count = std::min(kRange, m.count - begin);
    Factors factors;
    load_factors<W>(m.pair, m.first + begin, count, 0, &factors);
    for (int64_t b = 0; b < count; ++b)
      for (int64_t at = 0; at < kPair; at += kQLanes) {
        const int64_t panel = at / kPanel, lane = at % kPanel;
        const uint8_t* block = values + ((m.first + begin + b) * 2 + panel) * W::kPanelBytes;
        float* out = m.out + (panel * m.count + begin + b) * kBlock * kPanel + lane;
        const QV scale = hn::Load(QD(), factors.scales + b * kPair + at);
        const QV zero = m.pair.zeros ? hn::Load(QD(), factors.zeros + b * kPair + at)
                                     : hn::Set(QD(), static_cast<float>(W::kZero));
        for (int line = 0; line < W::kLines; ++line)
          widen_columns<W, 0>(load_lanes(block, line, lane), zero, scale,
                              out + line * W::kLineColumns * kPanel);
      }
  }
}

// ---- rows: the bits of encode_q8() in quant/q8.h

inline void encode_row_q8(const float* values, int8_t* q, Q8Scale* scale) {
  QV most = hn::Zero(QD()), wrong = hn::Zero(QD());
  for (int64_t i = 0; i < kBlock; i += kQLanes) {
    const QV value = hn::LoadU(QD(), values + i);
    most = hn::Max(most, hn::Abs(value));
    wrong = hn::Add(wrong, hn::Mul(value, hn::Zero(QD())));  // NaN where it is not finite
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(QD(), most));
  const bool finite = hn::AllTrue(QD(), hn::Eq(wrong, hn::Zero(QD())));
  if (!finite || largest < kQ8Tiny) {
    std::fill_n(q, kBlock, int8_t{0});
    *scale = {finite ? 0.0f : std::numeric_limits<float>::quiet_NaN(), 0};
    return;
  }
  const QV inverse = hn::Set(QD(), 127.0f / largest);
  QVI sum = hn::Zero(QI());
  for (int64_t i = 0; i < kBlock; i += kQLanes) {
    const QVI rounded = hn::NearestInt(hn::Mul(hn::LoadU(QD(), values + i), inverse));
    const hn::Rebind<int8_t, QD> byte;
    hn::StoreU(hn::DemoteTo(byte, rounded), byte, q + i);
    sum = hn::Add(sum, rounded);
  }
  *scale = {largest / 127.0f, -hn::GetLane(hn::SumOfLanes(QI(), sum))};
}

constexpr QuantKernels quant_kernels(const char* name, bool (*available)()) {
  return {name,           available,      {kQMaxRows},  q_multiply<QInt8>, q_multiply<QInt4>,
          q_widen<QInt8>, q_widen<QInt4>, encode_row_q8};
}

}  // namespace HWY_NAMESPACE
}  // namespace moe::cpu
#if HWY_TARGET == HWY_AVX3_DL
HWY_POP_ATTRIBUTES
#endif
HWY_AFTER_NAMESPACE();

#undef MOE_UNROLL
#endif  // include guard per target
