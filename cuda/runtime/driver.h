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

// cudaFuncSetAttribute of the dynamic shared memory that `kernel` may have, which clears the
// thread's last error; this does not.
cudaError_t allow_shared_memory(const void* kernel, size_t bytes);

}  // namespace moe::cuda
