// Products of q8 rows and int8 or int4 weights by AMX, for tiles of many rows. Included after
// quant_kernels-inl.h for the one target it serves.
//
// A range of blocks is written to the L1 cache as signed bytes, the form of AMX's weights; each
// block of a panel then is one product of a tile of rows (16 x 32) and of weights (32 x 16), whose
// integers go through memory to the vector unit: there is no other way out of a tile.
#if HWY_TARGET == HWY_AVX3_DL

#include "gemm/amx_tiles.h"

#if defined(__clang__)
#define MOE_UNROLL _Pragma("unroll")
#else
#define MOE_UNROLL _Pragma("GCC unroll 32")
#endif

HWY_BEFORE_NAMESPACE();
HWY_PUSH_ATTRIBUTES("avx512vnni,amx-tile,amx-int8")
namespace moe::cpu {
namespace HWY_NAMESPACE {

constexpr int64_t kAmxRows = 16;
constexpr int64_t kAmxPanelBytes = kBlock * kPanel;  // of a block
// Of an expert. With so few VNNI is as fast or faster (8 rows: by a tenth), since memory is the
// limit.
constexpr int64_t kAmxFewRows = 16;

// 64 stored bytes as signed ones, in the order of columns.
HWY_INLINE int8_t* write_signed(QInt8, QVI line, int8_t* out) {
  const hn::Repartition<int8_t, QI> bytes;
  hn::Store(hn::Xor(hn::BitCast(bytes, line), hn::Set(bytes, int8_t{-128})), bytes, out);
  return out + 64;
}

HWY_INLINE int8_t* write_signed(QInt4, QVI line, int8_t* out) {
  const hn::Repartition<int8_t, QI> bytes;
  const auto both = hn::BitCast(QU(), line), mask = hn::Set(QU(), 0x0f0f0f0fu);
  const auto eight = hn::Set(bytes, int8_t{8});
  const auto low = hn::BitCast(bytes, hn::And(both, mask));
  const auto high = hn::BitCast(bytes, hn::And(hn::ShiftRight<4>(both), mask));
  hn::Store(hn::Sub(low, eight), bytes, out);
  hn::Store(hn::Sub(high, eight), bytes, out + 64);
  return out + 128;
}

template <class W>
HWY_INLINE void write_signed(const uint8_t* values, int64_t blocks, int8_t* out) {
  for (int64_t line = 0; line < blocks * 2 * W::kLines; ++line)
    out = write_signed(W(), load_lanes(values, line, 0), out);
}

// Tiles 0, 1: dot products; 2, 3: rows; 4, 5: weights. Two of each, so that a block need not wait
// for the one before.
inline void configure_amx(int64_t rows) {
  TileConfig config;
  for (int tile = 0; tile < 4; ++tile) config.rows[tile] = static_cast<uint8_t>(rows);
  config.rows[4] = config.rows[5] = kBlock / 4;
  config.row_bytes[2] = config.row_bytes[3] = kBlock;
  configure_tiles(config);
}

template <int kSet>
HWY_INLINE void amx_products(const int8_t* q, const uint8_t* weights, int32_t* dots) {
  if constexpr (kSet == 0) {
    _tile_zero(0);
    _tile_loadd(2, q, 32);
    _tile_loadd(4, weights, 64);
    _tile_dpbssd(0, 2, 4);
    _tile_stored(0, dots, 64);
  } else {
    _tile_zero(1);
    _tile_loadd(3, q, 32);
    _tile_loadd(5, weights, 64);
    _tile_dpbssd(1, 3, 5);
    _tile_stored(1, dots, 64);
  }
}

// totals += dots of block `b`, times their scales.
template <int kRows, bool kZeros>
HWY_INLINE void amx_add(const QBlocks& m, const Factors& factors, int64_t lane, int64_t b,
                        const int32_t* dots, QV (&totals)[kRows]) {
  const Q8Scale* row = m.rows + b * kRows;
  const QV scale = hn::Load(QD(), factors.scales + b * kPair + lane);
  QV zero = hn::Zero(QD());
  if constexpr (kZeros) zero = hn::Load(QD(), factors.zeros + b * kPair + lane);
  MOE_UNROLL for (int r = 0; r < kRows; ++r) {
    QV dot = hn::ConvertTo(QD(), hn::Load(QI(), dots + r * kPanel));  // exact, as is the next one
    if constexpr (kZeros)
      dot = q_fma(zero, hn::ConvertTo(QD(), hn::Set(QI(), row[r].minus_sum)), dot);
    totals[r] = q_fma(hn::Mul(dot, hn::Set(QD(), row[r].scale)), scale, totals[r]);
  }
}

// Half of a block's share of what comes next.
template <class W>
HWY_INLINE void fetch_half(const QBlocks& m, int64_t block, int64_t half) {
  const uint8_t* ahead = m.ahead + block * 2 * W::kPanelBytes;
  for (int64_t l = m.ahead_lines * half / 2; l < m.ahead_lines * (half + 1) / 2; ++l)
    __builtin_prefetch(ahead + l * 64);
}

// kRows rows times one panel, from output `lane` (of 32) on. While the products of a block are
// under way, those of the one before are added.
template <class W, int kRows, bool kZeros>
HWY_INLINE void amx_panel(const QBlocks& m, const Factors& factors, int64_t lane) {
  alignas(64) int32_t even[kRows * kPanel], odd[kRows * kPanel];
  QV totals[kRows];
  float* const sums = m.sums + lane;
  MOE_UNROLL for (int r = 0; r < kRows; ++r) totals[r] =
      m.first ? hn::Zero(QD()) : hn::Load(QD(), sums + r * kPair);
  const int64_t blocks = m.blocks, panel = lane / kPanel;
  const int8_t* q = m.q;
  const uint8_t* weights = m.values + panel * kAmxPanelBytes;
  amx_products<0>(q, weights, even);
  for (int64_t b = 0; b < blocks; b += 2) {
    fetch_half<W>(m, b, panel);
    if (b + 1 < blocks) amx_products<1>(q + kRows * kBlock, weights + 2 * kAmxPanelBytes, odd);
    amx_add<kRows, kZeros>(m, factors, lane, b, even, totals);
    if (b + 1 == blocks) break;
    fetch_half<W>(m, b + 1, panel);
    q += 2 * kRows * kBlock;
    weights += 4 * kAmxPanelBytes;
    if (b + 2 < blocks) amx_products<0>(q, weights, even);
    amx_add<kRows, kZeros>(m, factors, lane, b + 1, odd, totals);
  }
  MOE_UNROLL for (int r = 0; r < kRows; ++r) hn::Store(totals[r], QD(), sums + r * kPair);
}

template <class W, int kRows, bool kZeros>
HWY_NOINLINE void amx_tile(const QBlocks& m, const Factors& factors) {
  for (int64_t lane = 0; lane < kPair; lane += kPanel)
    amx_panel<W, kRows, kZeros>(m, factors, lane);
}

template <class W, bool kZeros, int... kRowsLess1>
constexpr auto amx_tile_functions(std::integer_sequence<int, kRowsLess1...>) {
  return std::array{&amx_tile<W, kRowsLess1 + 1, kZeros>...};
}

template <class W>
void amx_multiply(const QuantMultiply& m) {
  if (m.tiles.rows <= kAmxFewRows) return q_multiply<W>(m);
  using Rows = std::make_integer_sequence<int, int{kAmxRows}>;
  static constexpr auto kUniform = amx_tile_functions<W, false>(Rows());
  static constexpr auto kWithZeros = amx_tile_functions<W, true>(Rows());
  const auto& tiles = m.pair.zeros ? kWithZeros : kUniform;
  alignas(64) int8_t weights[kRange * 2 * kAmxPanelBytes];
  int64_t configured = 0;
  for_each_range<W>(
      m, W::kZero,
      [&](const uint8_t* values, int64_t count) HWY_ATTR {
        write_signed<W>(values, count, weights);
        finish_stores();
        return reinterpret_cast<const uint8_t*>(weights);
      },
      [&](int64_t rows, const QBlocks& blocks, const Factors& factors) HWY_ATTR {
        if (rows != configured) configure_amx(rows);
        configured = rows;
        tiles[rows - 1](blocks, factors);
      });
  _tile_release();
}

constexpr QuantKernels amx_kernels() {
  QuantKernels kernels = quant_kernels("amx", has_amx_int8);
  kernels.tile_rows = {kAmxRows, kAmxFewRows, kQMaxRows};
  kernels.multiply_int8 = amx_multiply<QInt8>;
  kernels.multiply_int4 = amx_multiply<QInt4>;
  return kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace moe::cpu
HWY_POP_ATTRIBUTES
HWY_AFTER_NAMESPACE();

#undef MOE_UNROLL
#endif  // HWY_AVX3_DL
