#include "cuda/blas_gemm.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include "cuda/buffer.h"

namespace moe::cuda::test {
namespace {

template <typename F>
F* find(void* library, const char* name) {
  return reinterpret_cast<F*>(dlsym(library, name));
}
#define MOE_BLAS(name) find<decltype(name)>(library_, #name)

void must(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string(what) + " answered " + std::to_string(status));
}

}  // namespace

BlasGemm::BlasGemm() : library_(dlopen("libcublasLt.so.13", RTLD_NOW)) {
  if (!library_) return;
  cublasLtHandle_t handle = nullptr;
  must(MOE_BLAS(cublasLtCreate)(&handle), "cublasLtCreate");
  handle_ = handle;
}

BlasGemm::~BlasGemm() {
  if (handle_) MOE_BLAS(cublasLtDestroy)(static_cast<cublasLtHandle_t>(handle_));
  if (library_) dlclose(library_);
}

void BlasGemm::multiply(const __nv_bfloat16* weights, const __nv_bfloat16* rows,
                        int64_t weight_rows, int64_t count, int64_t depth, float* out) const {
  const auto handle = static_cast<cublasLtHandle_t>(handle_);
  cublasLtMatmulDesc_t op;
  must(MOE_BLAS(cublasLtMatmulDescCreate)(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a description");
  const cublasOperation_t transposed = CUBLAS_OP_T;
  must(MOE_BLAS(cublasLtMatmulDescSetAttribute)(op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                sizeof transposed),
       "an attribute");
  cublasLtMatrixLayout_t a, b, d;  // column-major
  const auto u64 = [](int64_t value) { return static_cast<uint64_t>(value); };
  MOE_BLAS(cublasLtMatrixLayoutCreate)(&a, CUDA_R_16BF, u64(depth), u64(weight_rows), depth);
  MOE_BLAS(cublasLtMatrixLayoutCreate)(&b, CUDA_R_16BF, u64(depth), u64(count), depth);
  MOE_BLAS(cublasLtMatrixLayoutCreate)(&d, CUDA_R_32F, u64(weight_rows), u64(count), weight_rows);
  const float one = 1, zero = 0;
  const cublasStatus_t status = MOE_BLAS(cublasLtMatmul)(
      handle, op, &one, weights, a, rows, b, &zero, out, d, out, d, nullptr, nullptr, 0, nullptr);
  for (cublasLtMatrixLayout_t layout : {a, b, d}) MOE_BLAS(cublasLtMatrixLayoutDestroy)(layout);
  MOE_BLAS(cublasLtMatmulDescDestroy)(op);
  must(status, "cublasLtMatmul");
}

}  // namespace moe::cuda::test
