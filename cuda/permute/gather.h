// Copies token rows into permuted order, where large tiles load them as boxes.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace moe::cuda {

struct GatherArgs {
  const __nv_bfloat16* from = nullptr;  // (tokens, hidden)
  const int32_t* row_token = nullptr;   // (rows)
  int64_t tokens = 0;
  int64_t rows = 0;             // those whose token is out of range are left out
  int64_t hidden = 0;           // multiple of 8
  __nv_bfloat16* to = nullptr;  // (rows, hidden)
};

cudaError_t launch_gather(const GatherArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
