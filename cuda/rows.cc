// The GPU's expert-GEMM backends, best first.
#include <span>

#include "gemm/backend.h"
#include "gemm/backends.h"

namespace moe {
namespace {

constexpr ExpertGemmRow kRows[] = {
    {"cuda-hopper", "wgmma on bf16 and fp8 in blocks, fed by the copy engine; fp32 sums",
     DeviceKind::cuda, cuda::hopper_available, cuda::make_hopper_gemm},
    {"cuda-portable", "mma.sync on bf16 from 8.0 on; rows and sums as bf16 and fp32",
     DeviceKind::cuda, cuda::portable_available, cuda::make_portable_gemm},
};

}  // namespace

std::span<const ExpertGemmRow> cuda_expert_gemm_rows() { return kRows; }

}  // namespace moe
