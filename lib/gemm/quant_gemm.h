// The CPU backend for int8 and int4 with a chosen instruction set.
#pragma once

#include <memory>

#include "gemm/cpu_kernels.h"
#include "gemm/quant_kernels.h"
#include "moe/expert_gemm.h"

namespace moe::cpu {

// Both sets of kernels must be available on this machine and outlive the result. `kernels` computes
// activations, and the products of exact rows.
std::unique_ptr<ExpertGemm> make_quant_gemm(const QuantKernels& quant, const Kernels& kernels,
                                            RowPrecision rows);

}  // namespace moe::cpu
