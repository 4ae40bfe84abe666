// The rows that make up the table of expert_gemm_rows().
#pragma once

#include <memory>
#include <span>

#include "moe/expert_gemm.h"

namespace moe {

// cpu_gemm.cc: the CPU backend people run.
std::unique_ptr<ExpertGemm> make_cpu_gemm(const ExpertGemmOptions& options);

// quant_gemm.cc: the same for int8 and int4 weights.
std::unique_ptr<ExpertGemm> make_cpu_quant_gemm(const ExpertGemmOptions& options);

// reference_gemm.cc: the oracle behind the same interface.
std::unique_ptr<ExpertGemm> make_reference_gemm(const ExpertGemmOptions& options);

// cuda/rows.cc, or no_cuda.cc in a build without CUDA: the GPU's backends, best first.
std::span<const ExpertGemmRow> cuda_expert_gemm_rows();

}  // namespace moe
