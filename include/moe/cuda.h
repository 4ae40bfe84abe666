// The one header that knows CUDA. Needs the CUDA runtime's headers, no nvcc.
#pragma once

#include <cuda_runtime_api.h>

#include "moe/stream.h"

namespace moe {

// Wraps a stream of the host. It must outlive all work that is enqueued on it.
inline Stream cuda_stream(cudaStream_t stream, int32_t device_index = 0) {
  return {Device::cuda(device_index), stream};
}

}  // namespace moe
