// Chooses experts for each row of logits by the rule of moe/router.h, with the CPU's bits.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "permute/permute.h"
#include "router/select.h"

namespace moe::cuda {

inline constexpr int32_t kMaxTopK = 32;

// Device memory throughout, the rule's pointers too; C is rule.candidates.
struct TopKArgs {
  rule::Rule rule;  // at most kMaxExperts candidates, top_k at most kMaxTopK

  const float* logits = nullptr;  // (tokens, C)
  int64_t tokens = 0;
  const uint8_t* mask = nullptr;        // (tokens, C), 0 = not allowed; or null
  const int64_t* token_ids = nullptr;   // (tokens), for Selection::token_lookup
  const int64_t* valid_rows = nullptr;  // one value; rows from it on get id -1. Null: tokens

  int32_t* ids = nullptr;                      // (tokens, top_k), best first; -1: no expert
  float* weights = nullptr;                    // (tokens, top_k)
  const void* const* token_experts = nullptr;  // where the rule's is kept; null: in the rule
  int32_t* chunk_rows = nullptr;               // of PermuteArgs; or null
  RouteCounts* counts = nullptr;  // nonfinite_rows and short_rows are added to; or null
};

cudaError_t launch_topk(const TopKArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
