// Products of bf16 rows and bf16 weights on the x86 units made for them: AMX tiles, and the dot
// products of AVX512-BF16. Intrinsics: Highway 1.0.3 has neither target.
#pragma once

#include "gemm/cpu_kernels.h"

namespace moe::cpu {

#if defined(__x86_64__)

// AMX: a B tile is 32 inputs of a panel as it lies in the slot, 16 pairs of inputs of 16 outputs.
void multiply_amx(const Multiply& m);
void multiply_dot_product(const Multiply& m);
void round_to_bf16(const float* values, int64_t count, uint16_t* out);

inline constexpr Bf16Rows kAmxRows = {32, kMaxBf16TileRows, multiply_amx, round_to_bf16};
inline constexpr Bf16Rows kDotProductRows = {2, kMaxTileRows, multiply_dot_product, round_to_bf16};

// The first call asks the system to let this process use tiles; it may say no.
bool has_amx();
bool has_avx512_bf16();

#endif

}  // namespace moe::cpu
