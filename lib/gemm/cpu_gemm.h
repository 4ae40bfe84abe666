// The CPU backend with a chosen instruction set; make_cpu_gemm() takes the best one.
#pragma once

#include <memory>

#include "gemm/cpu_kernels.h"
#include "moe/expert_gemm.h"

namespace moe::cpu {

// `kernels` must be available on this machine and outlive the result.
std::unique_ptr<ExpertGemm> make_gemm(const Kernels& kernels,
                                      RowPrecision rows = RowPrecision::automatic);

}  // namespace moe::cpu
