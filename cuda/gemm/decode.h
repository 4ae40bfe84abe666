// The experts of one or two rows in two kernels, on Hopper: gates and ups with the activation, then
// down with the weighted sum of the layer. The weights' bytes decide: each warp streams pairs of
// weight rows (a gate and its up; two outputs) through a ring of its own by the copy engine. A
// block of the second kernel owns some outputs, and holds what every expert adds to them in shared
// memory.
//
// Tried and lost: two blocks on a multiprocessor, so that the second kernel's rings fill while the
// first one ends (16 % slower); half the warps with twice the bytes each (15 %); more token rows a
// tile (at 16 tokens 5 to 30 % slower than tiles of 32 on the matrix units); e4m3 weights (at one
// token 5 % faster to 12 % slower: widening them costs what the bytes save).
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gemm/grouped_gemm.h"
#include "permute/combine.h"

namespace moe::cuda {

inline constexpr int32_t kDecodeTokens = 2;  // most rows of a tile

// In bf16. Of the GEMMs the bases, shapes, tiles and outputs are read, and no map. [1]: those of
// the shared expert, whose row t is token t; no tile_count: there is none.
struct DecodeArgs {
  GroupedGemmArgs gate_up[2];  // rows by token; out: bf16, activated
  GroupedGemmArgs down[2];     // rows as gate_up left them; no out
  CombineArgs sum;             // its rows and its shared ones are those of down; shared: not null
  uint32_t* done = nullptr;    // (1)
};

struct DecodeKernel {
  // Whether its lists and a block's outputs fit into shared memory, on that many multiprocessors.
  bool (*fits)(const DecodeArgs& args, int multiprocessors);
  cudaError_t (*launch)(const DecodeArgs& args, int multiprocessors, cudaStream_t stream);
};

}  // namespace moe::cuda
