// The kernel of few.h on the tiles of grouped_gemm.h, for bf16 rows by bf16 or e4m3 weights.
//
// One list holds the pieces of gates and ups, of down, and of the weighted sum; a block draws one
// after the other, and its producer loads a piece's weights while the rows that it needs are still
// being computed (gemm/few_work.cuh). So the memory is busy from the first piece to the last.
#pragma once

#include "gemm/few.h"

namespace moe::cuda {

inline constexpr int32_t kFewTileTokens = 16;  // most rows of a tile, and most tokens

extern const FewKernel kHopperFewTiles;

}  // namespace moe::cuda
