// The experts of few rows in two kernels: gates and ups with the activation, then down with the
// weighted sum of the layer. Those of the shared expert are in both.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gemm/grouped_gemm.h"
#include "permute/combine.h"

namespace moe::cuda {

// [1]: those of the shared expert, whose row t is token t; no tile_count: there is none. Weights
// are of both or of neither GEMM of a pair in one type, as `operands` says.
struct FewArgs {
  GroupedGemmArgs gate_up[2];  // rows by token, bf16; out: bf16, activated. No map of the rows.
  GroupedGemmArgs down[2];     // rows as gate_up left them
  CombineArgs sum;             // its rows and its shared ones are those of down
  uint32_t* done = nullptr;    // (few_counters(hidden))
};

// Blocks that are done: all, and with each 64 outputs.
constexpr int64_t few_counters(int64_t hidden) { return 1 + 2 * ((hidden + 127) / 128); }

struct FewKernel {
  int32_t tile_tokens;  // most rows of a tile
  bool maps;            // down's rows are read through maps with boxes of 8 rows

  // Whether it serves these operands and sizes, on that many multiprocessors.
  bool (*fits)(const FewArgs& args, int multiprocessors);
  cudaError_t (*launch)(const FewArgs& args, int multiprocessors, cudaStream_t stream);
};

}  // namespace moe::cuda
