// Rows of any float type, strided, times a weight, as the dense bf16 rows that the GEMMs read.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "runtime/rows.h"

namespace moe::cuda {

struct ForwardNote;

struct CastRowsArgs {
  Rows from;  // (tokens, hidden)
  int64_t tokens = 0;
  int64_t hidden = 0;
  const ForwardNote* note = nullptr;  // rows past note->rows are not read

  // Null: row t goes to row t. Otherwise row p / top_k goes to row row_of_pair[p], times
  // weights[p].
  const int32_t* row_of_pair = nullptr;
  const float* weights = nullptr;
  int32_t top_k = 1;

  __nv_bfloat16* to = nullptr;  // (rows, stride); what lies past `hidden` becomes 0
  int64_t stride = 0;
};

cudaError_t launch_cast_rows(const CastRowsArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
