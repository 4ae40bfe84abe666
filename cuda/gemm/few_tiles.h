// The kernels of few.h on the tiles of grouped_gemm.h, for bf16 rows by bf16 or e4m3 weights: the
// work list holds the shared expert's tiles after the routed ones. Whoever stores the last rows of
// 64 outputs sums them for all tokens, so that the order of the sum is that of permute/combine.h
// and no block waits for another.
#pragma once

#include "gemm/few.h"

namespace moe::cuda {

inline constexpr int32_t kFewTileTokens = 16;  // most rows of a tile, and most tokens

extern const FewKernel kHopperFewTiles;

}  // namespace moe::cuda
