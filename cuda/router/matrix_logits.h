// The router's matrix product in the matrix units, for bf16 rows and weights: products are exact,
// sums f32. A row's bits depend on that row alone.
#pragma once

#include "router/logits.h"

namespace moe::cuda {

// Whether launch_matrix_logits() serves `args`, if the weights are bf16.
bool fits_matrix_units(const LogitsArgs& args);

// A table whose weights are not bf16 leaves the logits and sets the note's error to
// failed_precondition.
cudaError_t launch_matrix_logits(const LogitsArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
