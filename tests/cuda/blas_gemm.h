// The grouped product by cuBLASLt, one call an expert, for tests: it knows the counts on the host.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>

namespace moe::cuda::test {

// Uses the library where the loader finds it; nothing links to it.
class BlasGemm {
 public:
  BlasGemm();
  ~BlasGemm();
  BlasGemm(const BlasGemm&) = delete;
  BlasGemm& operator=(const BlasGemm&) = delete;

  bool found() const { return handle_ != nullptr; }

  // out (rows, weight_rows) = rows (rows, depth) * weights (weight_rows, depth)^T, summed in f32;
  // everything dense in device memory. On the legacy stream.
  void multiply(const __nv_bfloat16* weights, const __nv_bfloat16* rows, int64_t weight_rows,
                int64_t count, int64_t depth, float* out) const;

 private:
  void* library_;
  void* handle_ = nullptr;
};

}  // namespace moe::cuda::test
