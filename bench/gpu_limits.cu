#include <algorithm>
#include <vector>

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <dlfcn.h>

#include "gpu_limits.h"

namespace moe::bench {
namespace {

__global__ void read_all(const uint4* data, int64_t count, uint32_t* sink) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  uint32_t x = 0;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = __ldcs(data + i + j * step);
#pragma unroll
    for (int j = 0; j < 8; ++j) x ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (x == 0x12345678) *sink = x;
}

// Random bytes that are ordinary values in both formats.
__global__ void fill(uint32_t* out, int64_t count, bool fp8) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint64_t x = i * 0x9E3779B97F4A7C15ull + 1;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x ^= x >> 27;
    const uint32_t bits = static_cast<uint32_t>(x);
    out[i] = fp8 ? (bits & 0xBFBFBFBFu) : (bits & 0x80FF80FFu) | 0x3F003F00u;
  }
}

// Median seconds of one call.
template <typename F>
double median_time(int repeats, F f) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<double> times;
  for (int i = 0; i < repeats + 3; ++i) {
    cudaEventRecord(begin);
    f();
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i >= 3) times.push_back(ms * 1e-3);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

// The functions of cuBLASLt that are used, found at run time: the library is half a gigabyte.
struct Blas {
  void* library = dlopen("libcublasLt.so.13", RTLD_NOW);
  template <typename F>
  F* find(const char* name) const {
    return reinterpret_cast<F*>(dlsym(library, name));
  }
};
#define MOE_BLAS(name) blas.find<decltype(name)>(#name)

}  // namespace

double read_bandwidth() {
  const size_t bytes = 4ull << 30;
  uint4* data = nullptr;
  if (cudaMalloc(&data, bytes + 256) != cudaSuccess) return 0;
  cudaMemset(data, 1, bytes + 256);
  uint32_t* sink = reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(data) + bytes);
  const double time = median_time(
      9, [&] { read_all<<<2112, 512>>>(data, static_cast<int64_t>(bytes / 16), sink); });
  const bool ok = cudaGetLastError() == cudaSuccess;
  cudaFree(data);
  return ok ? bytes / time : 0;
}

double matrix_rate(bool fp8) {
  const Blas blas;
  if (!blas.library) return 0;
  const int64_t n = 8192;
  const size_t element = fp8 ? 1 : 2, scratch = 64 << 20;
  char* memory = nullptr;
  if (cudaMalloc(&memory, 2 * n * n * element + n * n * 2 + scratch + 256) != cudaSuccess) return 0;
  char *a = memory, *b = a + n * n * element, *d = b + n * n * element, *work = d + n * n * 2;
  float* one = reinterpret_cast<float*>(work + scratch);
  const float unit = 1, zero = 0;
  cudaMemcpy(one, &unit, 4, cudaMemcpyHostToDevice);
  fill<<<2048, 256>>>(reinterpret_cast<uint32_t*>(a), 2 * n * n * element / 4, fp8);

  cublasLtHandle_t handle = nullptr;
  MOE_BLAS(cublasLtCreate)(&handle);
  cublasLtMatmulDesc_t op;
  MOE_BLAS(cublasLtMatmulDescCreate)(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const auto set = [&](cublasLtMatmulDescAttributes_t key, const auto& value) {
    MOE_BLAS(cublasLtMatmulDescSetAttribute)(op, key, &value, sizeof(value));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (fp8) {
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, one);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, one);
  }
  const cudaDataType type = fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
  cublasLtMatrixLayout_t in, out;
  MOE_BLAS(cublasLtMatrixLayoutCreate)(&in, type, n, n, n);
  MOE_BLAS(cublasLtMatrixLayoutCreate)(&out, CUDA_R_16BF, n, n, n);
  cublasLtMatmulPreference_t preference;
  MOE_BLAS(cublasLtMatmulPreferenceCreate)(&preference);
  MOE_BLAS(cublasLtMatmulPreferenceSetAttribute)
  (preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &scratch, sizeof(scratch));
  cublasLtMatmulHeuristicResult_t found = {};
  int count = 0;
  MOE_BLAS(cublasLtMatmulAlgoGetHeuristic)
  (handle, op, in, in, out, out, preference, 1, &found, &count);
  double rate = 0;
  if (count > 0) {
    const double time = median_time(15, [&] {
      MOE_BLAS(cublasLtMatmul)
      (handle, op, &unit, a, in, b, in, &zero, d, out, d, out, &found.algo, work, scratch, nullptr);
    });
    if (cudaGetLastError() == cudaSuccess) rate = 2.0 * n * n * n / time;
  }
  MOE_BLAS(cublasLtMatmulPreferenceDestroy)(preference);
  MOE_BLAS(cublasLtMatrixLayoutDestroy)(in);
  MOE_BLAS(cublasLtMatrixLayoutDestroy)(out);
  MOE_BLAS(cublasLtMatmulDescDestroy)(op);
  MOE_BLAS(cublasLtDestroy)(handle);
  cudaFree(memory);
  return rate;
}

}  // namespace moe::bench
