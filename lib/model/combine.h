// The weighted sum over a row's experts, and what is added to it.
#pragma once

#include <cstdint>
#include <span>

#include "moe/host.h"
#include "moe/tensor.h"
#include "moe/weights.h"

namespace moe {

// For each row t:
//   routed = sum over the row's chosen experts, ascending in expert index, of weight * result
//            (a zero expert's result is the row itself; ids of -1 are skipped)
//   out[t] (+)= routed_scale * routed + shared_scale * shared_gate[t] * shared[t]
// in fp32, in this order whatever computed the results: that is what makes bits repeat.
struct CombineArgs {
  TensorView hidden;      // (tokens, hidden): rows of zero experts
  MutableTensorView out;  // (tokens, hidden); may be `hidden`
  bool accumulate = false;

  int32_t top_k = 0;
  int32_t num_experts = 0;         // ids from here on are zero experts
  const int32_t* ids = nullptr;    // (tokens, top_k)
  const float* weights = nullptr;  // (tokens, top_k)
  bool weights_on_input = false;   // the experts' rows carry their weights already
  const float* rows = nullptr;     // (tokens * top_k, hidden)

  const float* shared = nullptr;       // (tokens, hidden); null: none
  const float* shared_gate = nullptr;  // (tokens); null: all 1
  float routed_scale = 1;
  float shared_scale = 1;

  Executor* executor = nullptr;
  std::span<int32_t> order;  // (concurrency, top_k)
};

void combine(const CombineArgs& args);

}  // namespace moe
