// Copies token rows to where the copy engine loads them as boxes: to their permuted places or as
// they stand, unchanged or quantised (quant/e4m3.cuh). A row is read once, whatever top_k is.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace moe::cuda {

struct ForwardNote;

struct CopyRowsArgs {
  const __nv_bfloat16* from = nullptr;   // (tokens, hidden), without gaps
  const int32_t* row_of_pair = nullptr;  // (tokens, top_k), -1: none; null: row t goes to row t
  int64_t tokens = 0;
  int32_t top_k = 1;                  // at most 32
  int64_t hidden = 0;                 // multiple of 8; of 16 if there are scales
  const ForwardNote* note = nullptr;  // rows past note->rows are not read; null: all are

  // (rows, hidden): bf16, or if there are scales e4m3 in the order of e4m3_column().
  void* to = nullptr;
  float* scales = nullptr;  // (scale_blocks(hidden), scale_stride); null: none
  int64_t scale_stride = 0;
};

cudaError_t launch_copy_rows(const CopyRowsArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
