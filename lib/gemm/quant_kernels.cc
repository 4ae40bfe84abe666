// Compiled once per instruction set by Highway's foreach_target, VNNI apart from plain AVX-512.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gemm/quant_kernels.cc"
#define HWY_WANT_AVX3_DL
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV | HWY_WASM)

#include "gemm/quant_kernels.h"

#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "gemm/instruction_sets.h"
#include "gemm/quant_kernels-inl.h"
//
#include "gemm/quant_amx-inl.h"

#if HWY_ONCE
namespace moe::cpu {
namespace {

constexpr QuantKernels kAll[] = {
#if HWY_TARGETS & HWY_AVX3_DL
    N_AVX3_DL::amx_kernels(),
    N_AVX3_DL::quant_kernels("avx512vnni", has<HWY_AVX3_DL>),
#endif
#if HWY_TARGETS & HWY_AVX3
    N_AVX3::quant_kernels("avx512", has<HWY_AVX3>),
#endif
#if HWY_TARGETS & HWY_AVX2
    N_AVX2::quant_kernels("avx2", has<HWY_AVX2>),
#endif
#if HWY_TARGETS & HWY_NEON
    N_NEON::quant_kernels("neon", always),
#endif
#if HWY_TARGETS & HWY_EMU128
    N_EMU128::quant_kernels("portable", always),
#endif
#if HWY_TARGETS & HWY_SCALAR
    N_SCALAR::quant_kernels("portable", always),
#endif
};

}  // namespace

std::span<const QuantKernels> all_quant_kernels() { return kAll; }

const QuantKernels& best_quant_kernels() { return first_available(all_quant_kernels()); }

}  // namespace moe::cpu
#endif  // HWY_ONCE
