// The parts of a layer that every row uses: router tensors, and the shared expert.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "moe/router.h"
#include "moe/weights.h"

namespace moe {

// One version of them. Immutable.
struct LayerBlock {
  std::vector<std::byte> storage;     // router tensors, as stored
  RouterWeights router;               // views into storage
  TensorView shared_gate;             // (1, hidden), view into storage; empty if there is none
  const std::byte* shared = nullptr;  // slot of the shared expert; null if there is none
  uint32_t version = 0;
};

// Reads every tensor that `layer` has. `shared` is where its shared expert lies.
Result<std::shared_ptr<const LayerBlock>> load_layer_block(const WeightSource& source,
                                                           int32_t layer, const std::byte* shared);

}  // namespace moe
