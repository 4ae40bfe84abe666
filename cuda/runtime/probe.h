// Whether the current GPU has a kernel image in this build.
#pragma once

#include <cuda_runtime_api.h>

namespace moe::cuda {

cudaError_t find_kernels();

}  // namespace moe::cuda
