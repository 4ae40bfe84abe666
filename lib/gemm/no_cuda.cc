// Linked in builds without CUDA, in place of cuda/rows.cc.
#include "gemm/backends.h"

namespace moe {

std::span<const ExpertGemmRow> cuda_expert_gemm_rows() { return {}; }

}  // namespace moe
