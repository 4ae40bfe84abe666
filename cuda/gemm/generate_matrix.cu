#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "checkpoint/synthetic_value.h"
#include "gemm/generate_matrix.h"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;

// Element `index` of the stored tensor. The host does not contract a + b * c.
__device__ float value_at(const GeneratedTensor& t, int64_t index) {
  const float spread = __fmul_rn(t.scale, synthetic_value(t.key, static_cast<uint64_t>(index)));
  const float value = __fadd_rn(t.offset, spread);
  if (t.dtype == DType::bf16) return __bfloat162float(__float2bfloat16_rn(value));
  if (t.dtype == DType::f16) return __half2float(__float2half_rn(value));
  return value;
}

// A block a row.
__global__ void __launch_bounds__(kThreads) generate(const GenerateArgs args) {
  wait_for_previous_kernel();
  const GeneratedTensor& t = args.tensor;
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const int64_t to = row_in_slot(args.order, row) * args.stride;
    const int64_t from = t.base + row * t.row_step;
    for (int64_t column = threadIdx.x; column < args.columns; column += kThreads) {
      const float value = value_at(t, from + column * t.column_step);
      if (args.type == SectionType::bf16)
        reinterpret_cast<__nv_bfloat16*>(args.section)[to + column] = __float2bfloat16_rn(value);
      else if (args.type == SectionType::f32)
        reinterpret_cast<float*>(args.section)[to + column] = value;
      else
        reinterpret_cast<__nv_fp8_storage_t*>(args.section)[to + e4m3_column(column)] =
            __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
    }
  }
}

}  // namespace

cudaError_t launch_generate(const GenerateArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.columns == 0) return cudaSuccess;
  const int64_t blocks = args.rows < 65535 ? args.rows : 65535;
  return launch(generate, static_cast<unsigned>(blocks), kThreads, 0, stream, args);
}

}  // namespace moe::cuda
