// The weighted sum of a token's experts:
//   out[t] = sum over places j, ascending in the expert's index, of weights[t, j] * rows[row(t, j)]
// in fp32, one rounding at the end. Ascending rows of the permuted batch are ascending experts.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace moe::cuda {

struct CombineArgs {
  const __nv_bfloat16* rows = nullptr;   // (tokens * top_k, hidden), permuted
  const int32_t* row_of_pair = nullptr;  // (tokens, top_k); -1: none
  const float* weights = nullptr;        // (tokens, top_k)
  int64_t tokens = 0;
  int32_t top_k = 0;   // at most 32
  int64_t hidden = 0;  // multiple of 8

  // (tokens, hidden); one of them.
  __nv_bfloat16* out_bf16 = nullptr;
  float* out_f32 = nullptr;
};

cudaError_t launch_combine(const CombineArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
