// One layer on the GPU, from rows to output: which kernels, in which order, over which workspace.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "gemm/grouped_gemm.h"
#include "gemm/layout.h"
#include "moe/expert_gemm.h"
#include "router/select.h"
#include "runtime/note.h"
#include "runtime/rows.h"

namespace moe::cuda {

// The experts of a layer: slots of a pool, and which slot holds which expert.
struct ExpertPool {
  const std::byte* base = nullptr;  // device memory, aligned to kSlotAlignment
  int64_t slots = 0;
  int64_t slot_bytes = 0;  // at least sections.bytes
  SlotShape shape;
  SlotSections sections;
  const int32_t* slot_of_expert = nullptr;  // (num_experts) on the device; null: a table says it
  int32_t num_experts = 0;                  // candidates: zero experts count, and have no slot
};

// How the copy engine sees a pool.
struct PoolMaps {
  CUtensorMap gate_up;
  CUtensorMap down;
};
cudaError_t make_pool_maps(const ExpertPool& pool, PoolMaps* out);

// What the experts of a pool compute.
struct Network {
  ExpertPool pool;
  const GroupedGemmKernel* kernel = nullptr;
  const PoolMaps* maps = nullptr;  // host memory, read during the call; null: no copy engine
  int32_t activation = 0;          // moe::Activation
  float alpha = 0, limit = 0;
  RowPrecision rows = RowPrecision::automatic;  // what e4m3 weights may be multiplied by
};

// The expert that sees every row.
struct SharedNetwork : Network {
  bool gated_by_row = false;  // scaled by sigmoid(shared_gate . row)
  float scale = 1;
};

// What a table's reader adds to the kernels' work; absent where a test gives slots and logits.
struct TableReader {
  EpochCounters* counters = nullptr;         // of the context
  const DeviceTable* const* cell = nullptr;  // of the layer
  ForwardReport* report = nullptr;           // pinned, or null
  LayerTotals* totals = nullptr;             // of the layer, or null
  const int64_t* valid_rows = nullptr;       // on the device, or null: all
  bool bf16_router = false;                  // what the table's block holds
  bool has_selection_bias = false;
  bool has_per_expert_scale = false;
};

struct LayerArgs : Network {
  const SharedNetwork* shared = nullptr;  // or null
  const TableReader* reader = nullptr;    // or null: pool.slot_of_expert and logits are given

  int64_t tokens = 0;
  int32_t top_k = 0;
  // How experts are chosen; candidates and top_k are set from the above.
  rule::Rule rule = {.weighting = Weighting::softmax_of_selected_logits};
  int32_t zero_experts = 0;  // the last of the candidates
  int64_t capacity = 0;      // rows per expert; 0: any
  bool weights_on_input = false;
  bool normalize_input = false;  // of the router
  float input_norm_epsilon = 0;
  float routed_scale = 1;

  Rows hidden;      // (tokens, hidden)
  MutableRows out;  // (tokens, hidden)
  bool accumulate = false;
  bool batch_invariant = false;  // a row's bits depend on that row alone

  // Where the routing comes from: these ids and weights; these logits; or the router on these rows.
  const int32_t* ids_in = nullptr;     // (tokens, top_k)
  const float* weights_in = nullptr;   // ditto
  Rows logits;                         // (tokens, candidates)
  Rows router_rows;                    // (tokens, hidden)
  const uint8_t* mask = nullptr;       // (tokens, candidates), or null
  const int64_t* token_ids = nullptr;  // (tokens), or null
  int32_t* ids_out = nullptr;          // (tokens, top_k), or null
  float* weights_out = nullptr;        // ditto

  std::byte* workspace = nullptr;  // layer_workspace_bytes(), aligned to 256 bytes
  int multiprocessors = 0;

  // Experts come in waves, each with slots of its own: see enqueue_experts().
  bool paged = false;

  uint64_t* expert_rows = nullptr;  // (candidates), rows are added to; or null: not counted

  // For measurements; -1 chooses.
  int32_t size = -1;       // TileClass
  int32_t gather = -1;     // 1: copy the rows of `hidden` into permuted order first
  int32_t decode = -1;     // 1: the kernels of gemm/decode.h, where they can
  int32_t few_tiles = -1;  // 0: not those of gemm/few_tiles.h
};

// What the size of a workspace depends on, beside tokens and top_k.
struct LayerShape {
  SlotShape routed;
  int64_t num_experts = 0;  // candidates
  SlotShape shared;         // hidden 0: none
  bool from_table = false;  // there is a TableReader
  bool weights_on_input = false;
  bool paged = false;
};
size_t layer_workspace_bytes(const LayerShape& shape, int64_t tokens, int32_t top_k);

// Enqueues the layer; never waits. cudaErrorInvalidValue for a shape that no kernel serves.
cudaError_t enqueue_layer(const LayerArgs& args, cudaStream_t stream);

// The same in three parts, for a layer whose experts are not all there: route, which leaves the
// epoch (leases protect what waves use), then any number of waves, then the rest. A wave computes
// the pairs whose experts have a slot in `slots` (candidates) of workspace_slots(), which the
// caller writes between.
cudaError_t enqueue_route(const LayerArgs& args, cudaStream_t stream);
cudaError_t enqueue_experts(const LayerArgs& args, cudaStream_t stream);
cudaError_t enqueue_rest(const LayerArgs& args, cudaStream_t stream);
int32_t* workspace_slots(const LayerArgs& args);      // (candidates), on the device
const int32_t* workspace_ids(const LayerArgs& args);  // (tokens, top_k), on the device

}  // namespace moe::cuda
