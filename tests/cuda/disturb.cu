#include "cuda/disturb.h"

namespace moe::cuda::test {
namespace {

__global__ void wait(const volatile int* stop) {
  for (int i = 0; i < 20'000'000 && !*stop; ++i) __nanosleep(200);
}

__global__ void fault(int* nowhere) { *nowhere = 1; }

}  // namespace

cudaError_t launch_wait(const volatile int* stop, cudaStream_t stream) {
  wait<<<1, 1, 0, stream>>>(stop);
  return cudaGetLastError();
}

cudaError_t launch_fault(cudaStream_t stream) {
  fault<<<1, 1, 0, stream>>>(reinterpret_cast<int*>(16));
  return cudaGetLastError();
}

}  // namespace moe::cuda::test
