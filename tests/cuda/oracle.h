// Synthetic experts made on the device, and the layer computed the slow, obvious way in double from
// the same slots: what the kernels are checked against.
#pragma once

#include "runtime/layer.h"

namespace moe::cuda::test {

// Standard normal values times `scale`; a function of (seed, index) alone.
cudaError_t fill_normal(__nv_bfloat16* out, int64_t count, float scale, uint64_t seed);
cudaError_t fill_normal(float* out, int64_t count, float scale, uint64_t seed);

// Random weights in every slot; padding is zero. fp8: codes and scales such that the values have
// the same spread as in bf16.
cudaError_t fill_pool(const ExpertPool& pool, std::byte* base, uint64_t seed);

// out[s] (samples, hidden) = the layer's answer for token samples[s], from given ids and weights
// (tokens, top_k). `scratch` holds samples * top_k * intermediate doubles. All device memory.
struct OracleArgs {
  ExpertPool pool;
  int32_t activation = 0;
  float alpha = 0, limit = 0;
  const __nv_bfloat16* hidden = nullptr;  // (tokens, hidden)
  const int32_t* ids = nullptr;
  const float* weights = nullptr;
  int32_t top_k = 0;
  const int64_t* samples = nullptr;
  int64_t num_samples = 0;
  double* scratch = nullptr;
  double* out = nullptr;
  // samples * hidden doubles: rows and activations are rounded to e4m3, as w8a8 does. Null: not.
  double* rows = nullptr;
};
cudaError_t oracle(const OracleArgs& args);

// Adds to *different (device memory) the number of words in which a and b differ.
cudaError_t count_different(const void* a, const void* b, int64_t words,
                            unsigned long long* different);

}  // namespace moe::cuda::test
