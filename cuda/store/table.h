// A layer's table as kernels read it, and the counters by which the reclaimer knows who still does.
// Plain structs in device memory; all pointers are the device's.
#pragma once

#include <cstdint>

#include "moe/tensor.h"

namespace moe::cuda {

// The router's tensors and the shared expert's gate, of one version.
struct DeviceBlock {
  const void* router_weight = nullptr;  // (candidates, hidden), dense; null: none
  DType router_type = DType::f32;       // f32 or bf16
  const float* logit_bias = nullptr;    // (candidates), or null, as the two below
  const float* selection_bias = nullptr;
  const float* per_expert_scale = nullptr;
  const float* input_scale = nullptr;   // (hidden), or null
  const void* token_experts = nullptr;  // (vocabulary, per_token), or null
  const float* shared_gate = nullptr;   // (hidden), or null
};

// Immutable once published. The slots of the candidates follow it: int32_t each, -1 where no ready
// copy serves (a zero expert has none).
struct DeviceTable {
  uint64_t epoch = 0;
  DeviceBlock block;
  int32_t shared_slot = -1;
  int32_t candidates = 0;
};

inline int64_t table_bytes(int64_t candidates) {
  return static_cast<int64_t>(sizeof(DeviceTable)) + candidates * 4;
}

// Of one context. A forward adds one to `entered` before it looks at a table and to `exited` when
// its last kernel runs; the next one may have entered by then.
struct EpochCounters {
  uint64_t entered = 0;
  uint64_t exited = 0;

  // While the first kernel of a forward runs (runtime/enter.cuh): the table that it took, and how
  // many of its blocks are done. 0 otherwise.
  uint64_t taken = 0;
  uint32_t done = 0;
};

}  // namespace moe::cuda
