// The router's matrix product: logits[t][c] = rows[t] . weight[c] + bias[c], summed in f32. The
// weights are those of the forward's note. Rows are read in the type they come in.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "runtime/note.h"
#include "runtime/rows.h"

namespace moe::cuda {

struct LogitsArgs {
  Rows rows;  // (tokens, hidden)
  int64_t tokens = 0;
  int64_t hidden = 0;
  int32_t candidates = 0;
  const ForwardNote* note = nullptr;
  float* logits = nullptr;       // (tokens, candidates); rows past note->rows stay as they are
  bool batch_invariant = false;  // one order of sums, whatever `tokens` is
};
cudaError_t launch_logits(const LogitsArgs& args, cudaStream_t stream);

// out[t] = rmsnorm(rows[t]) * hidden^-0.5 * input_scale (Gemma 4), f32, dense.
struct NormalizeArgs {
  Rows rows;  // (tokens, hidden)
  int64_t tokens = 0;
  int64_t hidden = 0;
  float epsilon = 0;
  const ForwardNote* note = nullptr;
  float* out = nullptr;  // (tokens, hidden)
};
cudaError_t launch_normalize(const NormalizeArgs& args, cudaStream_t stream);

// gate[t] = sigmoid(shared_gate . rows[t]).
struct SharedGateArgs {
  Rows rows;  // (tokens, hidden)
  int64_t tokens = 0;
  int64_t hidden = 0;
  const ForwardNote* note = nullptr;
  float* gate = nullptr;  // (tokens)
};
cudaError_t launch_shared_gate(const SharedGateArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
