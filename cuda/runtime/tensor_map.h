// Tensor maps: how the copy engine sees an array in device memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace moe::cuda {

// One matrix of every slot of a pool: (slots, rows, columns), row-major.
struct PoolMatrix {
  const std::byte* base = nullptr;  // the matrix in slot 0; 16-byte aligned
  int64_t columns = 0;
  int64_t rows = 0;
  int64_t slots = 0;
  int64_t row_bytes = 0;   // multiple of 16
  int64_t slot_bytes = 0;  // from one slot to the next; multiple of 16
  int32_t element_bytes = 2;
};

// Boxes of (box_rows x 128 bytes) with 128-byte swizzle; what lies outside the matrix reads as
// zero. cudaErrorInvalidValue if the driver refuses the shape.
cudaError_t make_tensor_map(const PoolMatrix& matrix, int32_t box_rows, CUtensorMap* out);

}  // namespace moe::cuda
