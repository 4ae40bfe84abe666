// Products of bf16 rows and bf16 weights by the dot products of AVX512-BF16. Intrinsics: Highway
// 1.0.3 has no such target.
#pragma once

#include "gemm/cpu_kernels.h"

namespace moe::cpu {

#if defined(__x86_64__)

void multiply_dot_product(const Multiply& m);
void round_to_bf16(const float* values, int64_t count, uint16_t* out);

inline constexpr Bf16Rows kDotProductRows = {2, kMaxTileRows, multiply_dot_product, round_to_bf16};

bool has_avx512_bf16();

#endif

}  // namespace moe::cpu
