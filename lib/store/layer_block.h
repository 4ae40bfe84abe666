// The parts of a layer that every row uses: router tensors, and the shared expert.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "moe/router.h"
#include "moe/weights.h"
#include "store/device.h"

namespace moe {

// One version of them. Immutable.
struct LayerBlock {
  std::vector<std::byte> storage;     // router tensors, as stored
  RouterWeights router;               // views into storage
  TensorView shared_gate;             // (1, hidden), view into storage; empty if there is none
  const std::byte* shared = nullptr;  // slot of the shared expert; null if there is none
  int64_t shared_slot = -1;           // its index in the pool
  uint32_t version = 0;
  std::unique_ptr<DeviceCopy> copy;  // null on the CPU
};

// XXH3 over the router's tensors.
uint64_t digest_of(const LayerBlock& block);

// Reads every tensor that `layer` has. `shared` is where its shared expert lies.
Result<std::shared_ptr<LayerBlock>> load_layer_block(const WeightSource& source, int32_t layer,
                                                     const std::byte* shared);

}  // namespace moe
