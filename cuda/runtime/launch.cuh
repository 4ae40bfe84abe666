// Launches a kernel that may start while the one before it in the stream is ending; such a kernel
// calls wait_for_previous_kernel() before it reads what that one wrote.
#pragma once

#include <cuda_runtime.h>

#include "runtime/driver.h"

namespace moe::cuda {

// Whether the build has code from before 9.0, which does not wait by itself for the kernel before.
#ifdef MOE_CUDA_BEFORE_HOPPER
inline constexpr bool kBeforeHopper = true;
#else
inline constexpr bool kBeforeHopper = false;
#endif

// Whether what runs of `kernel` on the current GPU waits by itself.
inline cudaError_t waits(const void* kernel, int* yes) {
  *yes = 1;
  if (!kBeforeHopper) return cudaSuccess;
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess) *yes = attributes.ptxVersion >= 90;
  return error;
}

inline constexpr size_t kSharedWithoutAsking = 32 << 10;  // with 16 KiB of static memory at most

// Blocks run in clusters of `cluster`, which divides the grid.
template <typename... Params, typename... Args>
cudaError_t launch_clusters(unsigned cluster, void (*kernel)(Params...), dim3 grid, dim3 block,
                            size_t shared_bytes, cudaStream_t stream, Args&&... args) {
  int early = 0;
  const auto symbol = reinterpret_cast<const void*>(kernel);
  cudaError_t error = waits(symbol, &early);
  if (error == cudaSuccess && shared_bytes > kSharedWithoutAsking)
    error = allow_shared_memory(symbol, shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = early;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Args&&... args) {
  return launch_clusters(1, kernel, grid, block, shared_bytes, stream,
                         static_cast<Args&&>(args)...);
}

}  // namespace moe::cuda
