// Products of bf16 rows and bf16 weights by AMX, which multiplies tiles of 16 rows and 32 inputs.
// Intrinsics: Highway has no such target.
#pragma once

#include "gemm/cpu_kernels.h"

namespace moe::cpu {

#if defined(__x86_64__)

void multiply_amx(const Multiply& m);
void round_to_bf16(const float* values, int64_t count, uint16_t* out);  // cpu_bf16_rows.cc

inline constexpr Bf16Rows kAmxRows = {32, 32, true, multiply_amx, round_to_bf16};

#endif

}  // namespace moe::cpu
