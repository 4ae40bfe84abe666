// Compiled once per instruction set by Highway's foreach_target. Targets without a fused
// multiply-add unit are left out; the portable one calls std::fma.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gemm/cpu_kernels.cc"
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV | HWY_WASM)

#include "gemm/cpu_kernels.h"

#include <array>
#include <cmath>
#include <utility>

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "gemm/amx_tiles.h"
#include "gemm/cpu_amx.h"
#include "gemm/cpu_bf16_rows.h"
#include "gemm/cpu_kernels-inl.h"
#include "gemm/instruction_sets.h"

#if HWY_ONCE
namespace moe::cpu {
namespace {

constexpr Kernels with(Kernels kernels, const Bf16Rows& rows) {
  kernels.bf16 = rows;
  return kernels;
}

constexpr Kernels kAll[] = {
#if HWY_TARGETS & HWY_AVX3
    with(N_AVX3::kernels("amx", has_amx_bf16), kAmxRows),
    with(N_AVX3::kernels("avx512bf16", has_avx512_bf16), kDotProductRows),
    N_AVX3::kernels("avx512", has<HWY_AVX3>),
#endif
#if HWY_TARGETS & HWY_AVX2
    N_AVX2::kernels("avx2", has<HWY_AVX2>),
#endif
#if HWY_TARGETS & HWY_NEON
    N_NEON::kernels("neon", always),
#endif
#if HWY_TARGETS & HWY_EMU128
    N_EMU128::kernels("portable", always),
#endif
#if HWY_TARGETS & HWY_SCALAR
    N_SCALAR::kernels("portable", always),
#endif
};

}  // namespace

std::span<const Kernels> all_kernels() { return kAll; }

const Kernels& best_kernels() { return first_available(all_kernels()); }

bool takes_bf16_rows(const Kernels& kernels, FormatKind weights, DType hidden, RowPrecision rows) {
  if (!kernels.bf16.multiply || weights != FormatKind::bf16) return false;
  if (rows == RowPrecision::automatic) return kernels.bf16.automatic && hidden == DType::bf16;
  return rows == RowPrecision::fast;
}

}  // namespace moe::cpu
#endif  // HWY_ONCE
