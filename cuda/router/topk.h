// Chooses top_k experts of each token from its logits; and, for few tokens, groups them as well.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "permute/permute.h"

namespace moe::cuda {

struct TopKArgs {
  const float* logits = nullptr;  // (tokens, num_experts)
  int64_t tokens = 0;
  int32_t num_experts = 0;
  int32_t top_k = 0;

  int32_t* ids = nullptr;    // (tokens, top_k), highest first
  float* weights = nullptr;  // (tokens, top_k)
};

// softmax over the chosen logits (which is softmax over all, renormalised).
cudaError_t launch_topk(const TopKArgs& args, cudaStream_t stream);

// launch_topk and launch_permute in one kernel of one block. permute.ids must be topk.ids.
inline constexpr int64_t kMaxFusedTokens = 64;
cudaError_t launch_topk_permute(const TopKArgs& topk, const PermuteArgs& permute,
                                cudaStream_t stream);

}  // namespace moe::cuda
