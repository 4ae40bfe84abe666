// One layer on the GPU, from logits to output: which kernels, in which order, over which workspace.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "gemm/grouped_gemm.h"
#include "gemm/layout.h"
#include "router/select.h"

namespace moe::cuda {

// The experts of a layer: slots of a pool, and which slot holds which expert.
struct ExpertPool {
  const std::byte* base = nullptr;  // device memory, aligned to kSlotAlignment
  int64_t slots = 0;
  int64_t slot_bytes = 0;  // at least sections.bytes
  SlotShape shape;
  SlotSections sections;
  const int32_t* slot_of_expert = nullptr;  // (num_experts) on the device
  int32_t num_experts = 0;
};

// How the copy engine sees a pool.
struct PoolMaps {
  CUtensorMap gate_up;
  CUtensorMap down;
};
cudaError_t make_pool_maps(const ExpertPool& pool, PoolMaps* out);

struct LayerArgs {
  ExpertPool pool;
  const PoolMaps* maps = nullptr;  // host memory, read during the call
  int32_t activation = 0;          // moe::Activation, gated
  float alpha = 0, limit = 0;

  int64_t tokens = 0;
  int32_t top_k = 0;
  // How experts are chosen; candidates and top_k are set from the above.
  rule::Rule rule = {.weighting = Weighting::softmax_of_selected_logits};
  const __nv_bfloat16* hidden = nullptr;  // (tokens, hidden); hidden is a multiple of 8
  const float* logits = nullptr;          // (tokens, num_experts)
  __nv_bfloat16* out = nullptr;           // (tokens, hidden)

  std::byte* workspace = nullptr;  // layer_workspace_bytes(), aligned to 256 bytes
  int multiprocessors = 0;

  // For measurements; -1 chooses.
  int32_t size = -1;    // TileClass
  int32_t gather = -1;  // 1: copy the rows of `hidden` into permuted order first
};

size_t layer_workspace_bytes(const SlotShape& shape, int64_t num_experts, int64_t tokens,
                             int32_t top_k);

// Enqueues the layer; never waits. cudaErrorInvalidValue for a shape that no kernel serves.
cudaError_t enqueue_layer(const LayerArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
