// The experts of few rows in one or two kernels after routing: gates and ups with the activation,
// down, and the weighted sum of the layer. The shared expert is in them.
#pragma once

#include <algorithm>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "gemm/grouped_gemm.h"
#include "permute/combine.h"

namespace moe::cuda {

// [1]: those of the shared expert, whose row t is token t; no tile_count: there is none. Weights
// are of both or of neither GEMM of a pair in one type, as `operands` says.
struct FewArgs {
  GroupedGemmArgs gate_up[2];    // rows by token, bf16; out: bf16, activated. No map of the rows.
  GroupedGemmArgs down[2];       // rows as gate_up left them
  CombineArgs sum;               // its rows and its shared ones are those of down
  uint32_t* counters = nullptr;  // (few_counters()), 0 by now
};

// What blocks draw from, and what they are done with: all, with 128 outputs, with a tile.
constexpr int64_t few_counters(int64_t hidden, int64_t pairs) {
  return 2 + (hidden + 127) / 128 + std::min<int64_t>(pairs, kMaxFewPairs) + 1;
}

struct FewKernel {
  int32_t tile_tokens;  // most rows of a tile

  // Whether it serves these operands and sizes, on that many multiprocessors.
  bool (*fits)(const FewArgs& args, int multiprocessors);
  cudaError_t (*launch)(const FewArgs& args, int multiprocessors, cudaStream_t stream);
};

}  // namespace moe::cuda
