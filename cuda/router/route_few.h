// All that comes before the experts of few rows, in one kernel: the forward's note, the router's
// product, the choice and its groups, and the rows as the experts read them.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "router/logits.h"
#include "router/topk.h"
#include "runtime/note.h"

namespace moe::cuda {

inline constexpr int64_t kMaxFewTokens = 16;

struct RouteFewArgs {
  // Where the choice comes from: these ids and weights; these logits; or the router on its rows.
  const int32_t* ids_in = nullptr;    // (tokens, top_k)
  const float* weights_in = nullptr;  // ditto
  Rows logits_in;                     // (tokens, candidates)

  // The table to note; no counters if there is none. The table's lists are not copied. Its rows:
  // null if there is no product. Its logits are written unless dense f32 ones are given.
  LogitsArgs router;

  TopKArgs topk;  // but for what the table's block says; its logits: null unless given, dense, f32
  bool has_selection_bias = false;
  bool has_per_expert_scale = false;
  int64_t capacity = 0;  // rows per expert; 0: any

  int32_t* ids_out = nullptr;  // (tokens, top_k), or null; rows past the valid ones stay
  float* weights_out = nullptr;

  PermuteArgs groups;  // neither its chunks nor what it copies; slots: the table's if there is one
  CopyRowsArgs cast;   // to: null if the rows are read as they are
  float* shared_gate = nullptr;  // (tokens), or null

  uint32_t* counters = nullptr;  // of the kernel after this one, which wants them 0
  int64_t num_counters = 0;
};

// At most kMaxFewTokens tokens.
cudaError_t launch_route_few(const RouteFewArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
