#include "runtime/scope.h"

#include "runtime/driver.h"
#include "runtime/probe.h"

namespace moe::cuda {

DeviceScope::DeviceScope(int32_t device) {
  static auto* const current = driver_function<decltype(cuCtxGetCurrent)>("cuCtxGetCurrent");
  if (!current || current(&context_) != CUDA_SUCCESS) context_ = nullptr;
  if (cudaGetDevice(&before_) != cudaSuccess) before_ = -1;
  (void)cudaSetDevice(device);
  (void)cudaThreadExchangeStreamCaptureMode(&mode_);
}

DeviceScope::~DeviceScope() {
  static auto* const set = driver_function<decltype(cuCtxSetCurrent)>("cuCtxSetCurrent");
  (void)cudaThreadExchangeStreamCaptureMode(&mode_);
  int now = -1;
  if (context_ && set)
    (void)set(context_);
  else if (before_ >= 0 && cudaGetDevice(&now) == cudaSuccess && now != before_)
    (void)cudaSetDevice(before_);
}

namespace {

StatusCode code_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return StatusCode::resource_exhausted;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorDevicesUnavailable: return StatusCode::unavailable;
    default: return StatusCode::internal;
  }
}

// 13010 -> "13.1"
std::string version(int number) { return fmt::format("{}.{}", number / 1000, number % 1000 / 10); }

Status driver_too_old(int32_t device) {
  int driver = 0;
  (void)cudaDriverGetVersion(&driver);
  if (driver == 0)
    return error(StatusCode::unavailable, {.phase = Phase::plan},
                 "cuda:{}: there is no NVIDIA driver on this machine", device);
  return error(StatusCode::unavailable, {.phase = Phase::plan},
               "cuda:{}: the driver serves CUDA {} and this build needs {}; install a newer driver",
               device, version(driver), version(CUDART_VERSION));
}

}  // namespace

Status check(cudaError_t error, const char* what, const Place& place) {
  if (error == cudaSuccess) return {};
  return moe::error(code_of(error), place, "CUDA failed to {}: {} ({})", what,
                    cudaGetErrorString(error), static_cast<int>(error));
}

Status check_device(int32_t device) {
  const Place place = {.phase = Phase::plan};
  const ErrorScope errors;
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted == cudaErrorInsufficientDriver) return driver_too_old(device);
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && count == 0))
    return error(StatusCode::unavailable, place, "cuda:{}: this machine has no CUDA device",
                 device);
  MOE_RETURN_IF_ERROR(check(counted, "count the GPUs", place));
  if (device < 0 || device >= count)
    return invalid_argument(place, "cuda:{}: this machine has {} CUDA device(s), from 0", device,
                            count);
  const DeviceScope scope(device);
  const cudaError_t image = find_kernels();
  if (image == cudaErrorNoKernelImageForDevice || image == cudaErrorInvalidDeviceFunction) {
    int major = 0, minor = 0;
    (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    return error(
        StatusCode::unavailable, place,
        "cuda:{} has compute capability {}.{}, for which this build has no kernels (it has "
        "{}); build with CMAKE_CUDA_ARCHITECTURES for it",
        device, major, minor, MOE_CUDA_ARCHITECTURES);
  }
  return check(image, "find this build's kernels", place);
}

size_t free_bytes(int32_t device) {
  const DeviceScope scope(device);
  size_t free = 0, total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
}

void* DeviceMemory::allocate(size_t bytes, size_t alignment) noexcept {
  if (alignment > 256) return nullptr;  // what cudaMalloc promises
  const DeviceScope scope(device_);
  void* memory = nullptr;
  return cudaMalloc(&memory, bytes) == cudaSuccess ? memory : nullptr;
}

void DeviceMemory::deallocate(void* memory, size_t, size_t) noexcept {
  const DeviceScope scope(device_);
  (void)cudaFree(memory);
}

}  // namespace moe::cuda
