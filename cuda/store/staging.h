// Pinned host memory through which packed experts go to the GPU, each with a stream of its own.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include <cuda_runtime_api.h>

#include "core/buffer.h"

namespace moe::cuda {

struct Staging {
  ~Staging();
  cudaStream_t stream = nullptr;
  std::byte* host = nullptr;  // pinned
  size_t bytes = 0;
  uint64_t* sum = nullptr;       // on the device
  uint64_t* sum_back = nullptr;  // pinned
};

// Safe for concurrent use; at most kMost pieces exist, and who finds none waits for one.
class StagingPool {
 public:
  static constexpr size_t kMost = 4;

  // A piece of at least `bytes`, to be given back.
  Result<std::unique_ptr<Staging>> take(size_t bytes);
  void give_back(std::unique_ptr<Staging> piece);

 private:
  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<std::unique_ptr<Staging>> idle_;
  size_t made_ = 0;
};

}  // namespace moe::cuda
