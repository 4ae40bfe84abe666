// The kernels of few.h for one or two rows in bf16, on Hopper. The weights' bytes decide: each warp
// streams pairs of weight rows (a gate and its up; two outputs) through a ring of its own by the
// copy engine. A block of the second kernel owns some outputs, and holds what every expert adds to
// them in shared memory.
//
// Tried and lost: two blocks on a multiprocessor, so that the second kernel's rings fill while the
// first one ends (16 % slower); half the warps with twice the bytes each (15 %); more token rows a
// tile (at 16 tokens 5 to 30 % slower than tiles of 32 on the matrix units); e4m3 weights (at one
// token 5 % faster to 12 % slower: widening them costs what the bytes save).
#pragma once

#include "gemm/few.h"

namespace moe::cuda {

inline constexpr int32_t kDecodeTokens = 2;  // most rows of a tile

// Whether they are ahead of few_tiles.h: for one row whose experts are that many bytes.
constexpr bool choose_decode(int64_t tokens, int64_t bytes) {
  return tokens == 1 && bytes <= int64_t{256} << 20;
}

extern const FewKernel kHopperDecode;

}  // namespace moe::cuda
