// The router's matrix product: logits[t][c] = rows[t] . weight[c] + bias[c], summed in f32, by the
// first kernel of a forward: the weights are those of the table that it notes. Rows are read in the
// type they come in.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "runtime/note.h"
#include "runtime/rows.h"

namespace moe::cuda {

struct LogitsArgs {
  BeginArgs begin;  // its tokens and candidates count
  Rows rows;        // (tokens, hidden)
  int64_t hidden = 0;
  float* logits = nullptr;       // (tokens, candidates); rows past the valid ones stay as they are
  bool batch_invariant = false;  // one order of sums, whatever the number of tokens is

  // Each row x as rmsnorm(x) * hidden^-0.5 * input_scale (Gemma 4), rounded to f32.
  bool normalize = false;
  float epsilon = 0;
};
cudaError_t launch_logits(const LogitsArgs& args, cudaStream_t stream);

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
