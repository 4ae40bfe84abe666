#include "runtime/tensor_map.h"

#include "runtime/driver.h"

namespace moe::cuda {
cudaError_t make_tensor_map(const PoolMatrix& matrix, int32_t box_rows, CUtensorMap* out) {
  static auto* const encode =
      driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  if (!encode) return cudaErrorInsufficientDriver;
  const auto u64 = [](int64_t value) { return static_cast<cuuint64_t>(value); };
  const cuuint64_t size[3] = {u64(matrix.columns), u64(matrix.rows), u64(matrix.slots)};
  const cuuint64_t stride[2] = {u64(matrix.row_bytes), u64(matrix.slot_bytes)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(128 / matrix.element_bytes),
                             static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t step[3] = {1, 1, 1};
  const CUresult result = encode(
      out,
      matrix.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8,
      3, const_cast<std::byte*>(matrix.base), size, stride, box, step,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace moe::cuda
