#include "gemm/cpu_bf16_rows.h"

#if defined(__x86_64__)

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include <cpuid.h>
#include <immintrin.h>

#define MOE_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#if defined(__clang__)
#define MOE_UNROLL _Pragma("unroll")
#else
#define MOE_UNROLL _Pragma("GCC unroll 32")
#endif

namespace moe::cpu {
namespace {

template <int kRows>
MOE_AVX512 void dot_product_tile(const uint16_t* panels, int64_t panel_elements, const uint16_t* x,
                                 int64_t pairs, bool first, float* sums, const AheadOfTile& ahead) {
  __m512 acc[kRows][2];
  MOE_UNROLL for (int r = 0; r < kRows; ++r) {
    MOE_UNROLL for (int v = 0; v < 2; ++v) acc[r][v] =
        first ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * kPair + v * kPanel);
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    if (ahead.at) {
      const char* line = ahead.at + pair * ahead.bytes_per_pair;
      __builtin_prefetch(line);
      __builtin_prefetch(line + panel_elements * int64_t{sizeof(uint16_t)});
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

}  // namespace

bool cpuid_bit(unsigned leaf, unsigned sub, int reg, int bit) {
  unsigned r[4] = {};
  return __get_cpuid_count(leaf, sub, &r[0], &r[1], &r[2], &r[3]) && (r[reg] >> bit & 1);
}

bool has_avx512_bf16() {
  constexpr int kEax = 0, kEbx = 1;
  static const bool yes = cpuid_bit(7, 1, kEax, 5) && cpuid_bit(7, 0, kEbx, 30) &&
                          __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  return yes;
}

void multiply_dot_product(const Multiply& m) {
  static constexpr auto kTiles =
      dot_product_tiles(std::make_integer_sequence<int, int{kMaxTileRows}>());
  const auto* panels = reinterpret_cast<const uint16_t*>(m.panels);
  for_each_block(
      m, [&](int64_t begin, int64_t count, int64_t t, int64_t row, const AheadOfTile& ahead) {
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
