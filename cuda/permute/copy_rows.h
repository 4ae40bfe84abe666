// Token rows as the GEMMs read them: in their type, and where the copy engine loads them as boxes.
// Each row is read once and goes to its permuted places or to its own, unchanged, times a weight,
// or quantised (quant/e4m3.cuh).
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "runtime/rows.h"

namespace moe::cuda {

struct ForwardNote;

struct CopyRowsArgs {
  Rows from;  // (tokens, columns)
  int64_t columns = 0;
  int64_t tokens = 0;
  const ForwardNote* note = nullptr;  // rows past note->rows are not read; null: all are

  const int32_t* row_of_pair = nullptr;  // (tokens, top_k), -1: none; null: row t goes to row t
  const float* weights = nullptr;        // (tokens, top_k), what a copy is multiplied with; or null
  int32_t top_k = 1;                     // at most 32

  // (rows, hidden): bf16, or if there are scales e4m3 in the order of e4m3_column(). What lies past
  // `columns` becomes 0. Null: nothing is copied.
  void* to = nullptr;
  int64_t hidden = 0;       // multiple of 8; of 16 if there are scales
  float* scales = nullptr;  // (scale_blocks(hidden), scale_stride), or null; not with weights
  int64_t scale_stride = 0;
};

inline bool valid_copy(const CopyRowsArgs& args) {
  return args.hidden % (args.scales ? 16 : 8) == 0 && args.top_k >= 1 && args.top_k <= 32 &&
         !(args.scales && args.weights);
}

cudaError_t launch_copy_rows(const CopyRowsArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
