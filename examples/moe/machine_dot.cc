#include "machine_dot.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace moe::cli {
namespace {

constexpr int kRows = 12;

// Keeps a register's value and makes the compiler forget it: chains that began alike would be
// computed once.
#define MOE_KEEP(x) asm volatile("" : "+v"(x))

#define MOE_VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))

MOE_VNNI double int8_vnni(int64_t rounds) {
  __m512i sum[2 * kRows] = {}, weights = _mm512_set1_epi8(3), x = _mm512_set1_epi8(1);
#pragma GCC unroll 24
  for (int r = 0; r < 2 * kRows; ++r) MOE_KEEP(sum[r]);
  for (int64_t i = 0; i < rounds; ++i) {
    MOE_KEEP(weights);
#pragma GCC unroll 24
    for (int r = 0; r < 2 * kRows; ++r) sum[r] = _mm512_dpbusd_epi32(sum[r], weights, x);
  }
#pragma GCC unroll 24
  for (int r = 0; r < 2 * kRows; ++r) MOE_KEEP(sum[r]);
  return static_cast<double>(rounds) * 2 * kRows * 64 * 2;
}

MOE_VNNI double int4_vnni(int64_t rounds) {
  const __m512i mask = _mm512_set1_epi8(15);
  __m512i sum[kRows] = {}, packed = _mm512_set1_epi8(0x35), x = _mm512_set1_epi8(1);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) MOE_KEEP(sum[r]);
  for (int64_t i = 0; i < rounds; ++i) {
    MOE_KEEP(packed);
    const __m512i low = _mm512_and_si512(packed, mask);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi32(packed, 4), mask);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) sum[r] = _mm512_dpbusd_epi32(sum[r], low, x);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) sum[r] = _mm512_dpbusd_epi32(sum[r], high, x);
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) MOE_KEEP(sum[r]);
  return static_cast<double>(rounds) * 2 * kRows * 64 * 2;
}

#define MOE_AVX2 __attribute__((target("avx2")))

// Two products in 16 bits, then four in 32.
MOE_AVX2 inline __m256i dot_avx2(__m256i sum, __m256i weights, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(weights, x);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

MOE_AVX2 double int8_avx2(int64_t rounds) {
  __m256i sum[kRows] = {}, weights = _mm256_set1_epi8(3), x = _mm256_set1_epi8(1);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) MOE_KEEP(sum[r]);
  for (int64_t i = 0; i < rounds; ++i) {
    MOE_KEEP(weights);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) sum[r] = dot_avx2(sum[r], weights, x);
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) MOE_KEEP(sum[r]);
  return static_cast<double>(rounds) * kRows * 32 * 2;
}

// Weights below 16: eight pairs of products are summed in 16 bits before they are widened.
MOE_AVX2 double int4_avx2(int64_t rounds) {
  const __m256i mask = _mm256_set1_epi8(15);
  __m256i sum[kRows] = {}, packed = _mm256_set1_epi8(0x35), x = _mm256_set1_epi8(1);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) MOE_KEEP(sum[r]);
  for (int64_t i = 0; i < rounds; ++i) {
    MOE_KEEP(packed);
    const __m256i low = _mm256_and_si256(packed, mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi32(packed, 4), mask);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
      sum[r] = _mm256_add_epi16(
          sum[r], _mm256_add_epi16(_mm256_maddubs_epi16(low, x), _mm256_maddubs_epi16(high, x)));
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) MOE_KEEP(sum[r]);
  return static_cast<double>(rounds) * 2 * kRows * 32 * 2;
}

bool has_vnni() {
  static const bool yes =
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
  return yes;
}
bool has_avx2() {
  static const bool yes = __builtin_cpu_supports("avx2");
  return yes;
}

}  // namespace

double dot_int8(int64_t rounds) {
  return has_vnni() ? int8_vnni(rounds) : has_avx2() ? int8_avx2(rounds) : 0;
}
double dot_int4(int64_t rounds) {
  return has_vnni() ? int4_vnni(rounds) : has_avx2() ? int4_avx2(rounds) : 0;
}

}  // namespace moe::cli

#else

namespace moe::cli {
double dot_int8(int64_t) { return 0; }
double dot_int4(int64_t) { return 0; }
}  // namespace moe::cli

#endif
