// Copies token rows into permuted order, where large tiles load them as boxes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace moe::cuda {

struct GatherArgs {
  const __nv_bfloat16* from = nullptr;   // (tokens, hidden)
  const int32_t* row_token = nullptr;    // (rows)
  int64_t rows = 0;    // rows without a token (fewer pairs were routed) must name a valid one
  int64_t hidden = 0;  // multiple of 8
  __nv_bfloat16* to = nullptr;  // (rows, hidden)
};

cudaError_t launch_gather(const GatherArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
