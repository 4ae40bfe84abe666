// Copies token rows to their permuted places, where large tiles load them as boxes. A row is read
// once, whatever top_k is.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace moe::cuda {

struct CopyRowsArgs {
  const __nv_bfloat16* from = nullptr;   // (tokens, hidden), without gaps
  const int32_t* row_of_pair = nullptr;  // (tokens, top_k); -1: none
  int64_t tokens = 0;
  int32_t top_k = 0;            // at most 32
  int64_t hidden = 0;           // multiple of 8
  __nv_bfloat16* to = nullptr;  // (rows, hidden)
};

cudaError_t launch_copy_rows(const CopyRowsArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
