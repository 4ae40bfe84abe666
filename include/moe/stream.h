// Where work is enqueued.
#pragma once

#include "moe/tensor.h"

namespace moe {

// A queue of work on a device. On the CPU there is no queue: calls complete before they return.
// The default is the CPU; make one for CUDA with cuda_stream() of moe/cuda.h.
struct Stream {
  Device device;           // that runs the work
  void* handle = nullptr;  // cudaStream_t on CUDA; owned by the host
};

}  // namespace moe
