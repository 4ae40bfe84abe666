// Kernels that get in the way.
#pragma once

#include <cuda_runtime_api.h>

namespace moe::cuda::test {

// Runs until *stop, in pinned memory, is not 0; some seconds at most.
cudaError_t launch_wait(const volatile int* stop, cudaStream_t stream);

// Writes where nothing is: every later call of the process answers with a sticky error.
cudaError_t launch_fault(cudaStream_t stream);

}  // namespace moe::cuda::test
