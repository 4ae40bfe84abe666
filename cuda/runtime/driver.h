// The driver's own functions, found through the runtime so that nothing links to the driver.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace moe::cuda {

void* find_driver_function(const char* name);

// Null if the driver has none of that name. Keep it: the search takes a microsecond.
template <typename Function>
Function* driver_function(const char* name) {
  return reinterpret_cast<Function*>(find_driver_function(name));
}

// cudaEventQuery, but for the thread's last error, where the runtime would leave "not ready".
cudaError_t query_event(cudaEvent_t event);

}  // namespace moe::cuda
