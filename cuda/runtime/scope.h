// What every entry from the host into CUDA does, and how its errors are worded.
#pragma once

#include <cstdint>

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "core/error.h"
#include "moe/host.h"

namespace moe::cuda {

// Takes errors of ours off the thread's record when it ends, so that the host does not find them
// there. One that the host left pending stays; a call of ours that fails meanwhile overwrites its
// code, which CUDA gives no way to set back: then ours stays pending in its place.
class ErrorScope {
 public:
  ErrorScope() : pending_(cudaPeekAtLastError()) {}
  ~ErrorScope() {
    if (pending_ == cudaSuccess) (void)cudaGetLastError();
  }
  ErrorScope(const ErrorScope&) = delete;
  ErrorScope& operator=(const ErrorScope&) = delete;

 private:
  cudaError_t pending_;
};

// Makes `device` current while it lives, and lets this thread allocate and copy while some other
// thread captures a graph. The caller's own device, context and mode come back.
class DeviceScope {
 public:
  explicit DeviceScope(int32_t device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  ErrorScope errors_;
  int32_t before_ = -1;
  CUcontext context_ = nullptr;  // null: the caller had none yet
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// ok, or the Status of a failed call; `what` completes "CUDA failed to ...". Within an ErrorScope.
Status check(cudaError_t error, const char* what, const Place& place = {});

// ok if kernels of this build run on the GPU `device`; otherwise one sentence with the reason.
Status check_device(int32_t device);

// Bytes free on `device`; 0 if it does not say.
size_t free_bytes(int32_t device);

// cudaMalloc and cudaFree of one device. Does not throw; null if there is no memory.
class DeviceMemory final : public Allocator {
 public:
  explicit DeviceMemory(int32_t device) : device_(device) {}
  void* allocate(size_t bytes, size_t alignment) noexcept override;
  void deallocate(void* memory, size_t bytes, size_t alignment) noexcept override;

 private:
  int32_t device_;
};

}  // namespace moe::cuda
