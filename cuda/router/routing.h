// What a routing is made from beside a choice: ids of the host, or logits of any type.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "runtime/note.h"
#include "runtime/rows.h"

namespace moe::cuda {

// (tokens, top_k) ids and weights in device memory.
struct RoutingArgs {
  int64_t tokens = 0;
  int32_t top_k = 0;
  int32_t candidates = 0;
  ForwardNote* note = nullptr;
  int32_t* ids = nullptr;
  float* weights = nullptr;
};

// Copies the host's routing into `to` and counts it (`chunk_rows` of PermuteArgs). An id that is no
// candidate becomes -1 and the note's error invalid_argument; rows past note->rows get -1.
cudaError_t launch_replay(const RoutingArgs& to, const int32_t* ids, const float* weights,
                          int32_t* chunk_rows, cudaStream_t stream);

// Logits of any float type as dense f32.
cudaError_t launch_widen(const Rows& from, const RoutingArgs& args, float* to, cudaStream_t stream);

}  // namespace moe::cuda
