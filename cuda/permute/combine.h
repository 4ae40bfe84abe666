// The weighted sum of a token's experts, and what is added to it; lib/model/combine.h on the GPU:
//   routed = sum over places j, ascending in the expert's index, of weights[t, j] * rows[row(t, j)]
//            (a zero expert's row is the token's own)
//   out[t] (+)= routed_scale * routed + shared_scale * shared_gate[t] * shared[t]
// in fp32, one rounding at the end. Ascending rows of the permuted batch are ascending experts.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "runtime/note.h"
#include "runtime/rows.h"

namespace moe::cuda {

struct CombineArgs {
  const __nv_bfloat16* rows = nullptr;   // (tokens * top_k, row_stride), permuted
  int64_t row_stride = 0;                // multiple of 8
  const int32_t* row_of_pair = nullptr;  // (tokens, top_k); -1: none
  const int32_t* ids = nullptr;          // (tokens, top_k); null: there are no zero experts
  const float* weights = nullptr;        // (tokens, top_k)
  bool weights_on_input = false;         // the rows carry theirs already
  int32_t num_experts = 0;               // ids from here on are zero experts
  int64_t tokens = 0;
  int32_t top_k = 0;  // at most 32
  int64_t hidden = 0;

  const __nv_bfloat16* shared = nullptr;  // (tokens, row_stride), or null
  const float* shared_gate = nullptr;     // (tokens); null: all 1
  float routed_scale = 1;
  float shared_scale = 1;

  Rows from;        // (tokens, hidden), for zero experts
  MutableRows out;  // (tokens, hidden); may be `from`
  bool accumulate = false;

  const ForwardNote* note = nullptr;  // rows past note->rows are not written; null: all are
  Finish finish;
};

cudaError_t launch_combine(const CombineArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
