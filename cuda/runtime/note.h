// What one forward works with: written by its first kernel, read by the others, so that a forward
// sees one table whatever is published meanwhile. Lies in the context's workspace.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "moe/router.h"
#include "moe/status.h"
#include "permute/permute.h"
#include "store/table.h"

namespace moe {
struct ForwardReport;
}

namespace moe::cuda {

struct ForwardNote {
  DeviceTable table;   // a copy of its head
  int64_t rows = 0;    // to compute: valid_rows applied
  RouteCounts counts;  // added to while routing
  StatusCode error = StatusCode::ok;
};

// The first kernel: enters the epoch, notes the newest table and what it says.
struct BeginArgs {
  EpochCounters* counters = nullptr;
  const DeviceTable* const* cell = nullptr;
  int64_t tokens = 0;
  const int64_t* valid_rows = nullptr;  // or null: all

  ForwardNote* note = nullptr;
  int32_t* slots = nullptr;           // (candidates): the table's
  float* selection_bias = nullptr;    // (candidates), written if the table has one
  float* per_expert_scale = nullptr;  // ditto
  int32_t candidates = 0;

  // The shared expert sees every row: its tiles. Null: none.
  TokenTile* shared_tiles = nullptr;  // (tokens / tile_tokens, rounded up)
  int32_t* shared_tile_count = nullptr;
  int32_t tile_tokens = 0;
};
cudaError_t launch_begin(const BeginArgs& args, cudaStream_t stream);

// What a model counts of a layer, in device memory; its expert rows follow (permute/permute.h).
struct LayerTotals {
  uint64_t forwards = 0;
  uint64_t rows = 0;
  uint64_t nonfinite_rows = 0;
  uint64_t dropped = 0;
};

// What the last kernel does when everything it waited for is done; any one thread.
struct Finish {
  EpochCounters* counters = nullptr;  // to leave; null: none, or left already
  const ForwardNote* note = nullptr;
  ForwardReport* report = nullptr;  // pinned memory, or null
  LayerTotals* totals = nullptr;    // added to; or null
};

// Leaves the epoch before the last kernel, where waves of experts follow; or after an error.
cudaError_t launch_leave(EpochCounters* counters, cudaStream_t stream);

}  // namespace moe::cuda
