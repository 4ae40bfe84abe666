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

cudaError_t query_event(cudaEvent_t event) {
  static auto* const query = driver_function<decltype(cuEventQuery)>("cuEventQuery");
  if (!query) return cudaErrorInsufficientDriver;
  return static_cast<cudaError_t>(query(event));  // their numbers are the runtime's
}

}  // namespace moe::cuda
