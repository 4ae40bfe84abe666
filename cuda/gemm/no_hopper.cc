// In place of hopper_gemm.cc where CMAKE_CUDA_ARCHITECTURES has no 90a.
#include "core/error.h"
#include "gemm/backend.h"

namespace moe::cuda {

std::unique_ptr<ExpertGemm> make_hopper_gemm(const ExpertGemmOptions&) { return nullptr; }

Status hopper_available() {
  return error(StatusCode::unavailable, {.phase = Phase::plan},
               "this build has no kernels for 9.0 (it has {}); build with "
               "CMAKE_CUDA_ARCHITECTURES=90a-real for it",
               MOE_CUDA_ARCHITECTURES);
}

}  // namespace moe::cuda
