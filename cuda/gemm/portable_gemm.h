// The expert GEMMs on any GPU from 8.0 on: the same products as grouped_gemm.h, by mma.sync from a
// ring that cp.async fills. Weights are the M side of a tile (128 rows), tokens the N side (32 or
// 128). Rows are gathered in the load, so that a copy beforehand never pays.
#pragma once

#include "gemm/grouped_gemm.h"

namespace moe::cuda {

// cudaErrorInvalidValue for TileClass::large and for shapes that grouped_gemm.h refuses.
cudaError_t launch_portable_gemm_bf16(TileClass size, const GroupedGemmArgs& args,
                                      int64_t max_tiles, int multiprocessors, cudaStream_t stream);
inline constexpr GroupedGemmKernel kPortableBf16 = {launch_portable_gemm_bf16, false, nullptr,
                                                    nullptr};

}  // namespace moe::cuda
