// The router's tensors of one layer in device memory.
#pragma once

#include <cuda_runtime_api.h>

#include "store/arena.h"
#include "store/layer_block.h"
#include "store/table.h"

namespace moe::cuda {

class BlockCopy final : public DeviceCopy {
 public:
  // Biases, scales and the gate become f32; so does a router in f16. Complete when it returns.
  static Result<std::unique_ptr<DeviceCopy>> make(const LayerSpec& spec, const LayerBlock& block,
                                                  Arena& arena, cudaStream_t stream);
  ~BlockCopy() override;

  const DeviceBlock& tensors() const { return tensors_; }
  int32_t candidates() const { return candidates_; }

 private:
  explicit BlockCopy(Arena& arena) : arena_(arena) {}

  Arena& arena_;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  DeviceBlock tensors_;
  int32_t candidates_ = 0;
};

}  // namespace moe::cuda
