// Rows of floats of any type in device memory, as a host passes them.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "moe/tensor.h"

namespace moe::cuda {

struct Rows {
  const void* data = nullptr;  // dense within a row
  DType type = DType::f32;     // f32, bf16 or f16
  int64_t stride = 0;          // elements from row to row
};

struct MutableRows {
  void* data = nullptr;
  DType type = DType::f32;
  int64_t stride = 0;
};

constexpr int64_t element_bytes(DType type) { return type == DType::f32 ? 4 : 2; }

// Whether every row begins at a multiple of 8 elements, and of 16 bytes.
template <typename Rows>
MOE_HOST_DEVICE bool aligned_by_8(const Rows& rows) {
  return rows.stride % 8 == 0 && reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

}  // namespace moe::cuda
