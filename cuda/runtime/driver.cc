#include "runtime/driver.h"

namespace moe::cuda {

void* find_driver_function(const char* name) {
  constexpr unsigned kVersion = 12000;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &function, kVersion, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? function : nullptr;
}

cudaError_t allow_shared_memory(const void* kernel, size_t bytes) {
  static auto* const set = driver_function<decltype(cuFuncSetAttribute)>("cuFuncSetAttribute");
  if (!set) return cudaErrorInsufficientDriver;
  cudaFunction_t function = nullptr;
  const cudaError_t error = cudaGetFuncBySymbol(&function, kernel);
  if (error != cudaSuccess) return error;
  return static_cast<cudaError_t>(  // the driver's numbers are the runtime's
      set(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(bytes)));
}

}  // namespace moe::cuda
