// Counts the pairs of each expert in the chunk of tokens that a block looks at (permute.h).
#pragma once

#include "permute/permute.h"

namespace moe::cuda {

// By all threads of the block, as all three; ends with a barrier. `rows`: (experts), shared memory.
__device__ inline void clear_rows(int32_t* rows, int experts) {
  for (int e = threadIdx.x; e < experts; e += blockDim.x) rows[e] = 0;
  __syncthreads();
}

__device__ inline void count_pair(int32_t* rows, int32_t id) {
  if (id >= 0) atomicAdd(&rows[id], 1);
}

// Begins with a barrier.
__device__ inline void write_rows(const int32_t* rows, int experts, int32_t* chunk_rows) {
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += blockDim.x)
    chunk_rows[static_cast<int64_t>(blockIdx.x) * experts + e] = rows[e];
}

}  // namespace moe::cuda
