// What a wave needs to know about one layer: which slot serves each expert, and the router weights
// and shared expert of the same version. Small, immutable once published.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "moe/router.h"
#include "moe/weights.h"

namespace moe {

// The parts of a layer that every row uses. One version of them.
struct LayerBlock {
  std::vector<std::byte> storage;  // router tensors, as stored
  RouterWeights router;            // views into storage
  TensorView shared_gate;          // (1, hidden), view into storage; empty if there is none
  const std::byte* shared = nullptr;  // slot of the shared expert; null if there is none
  uint32_t version = 0;
};

// A ready copy of one expert.
struct TableCopy {
  const std::byte* slot = nullptr;  // null: no ready copy
  int64_t slot_index = -1;
  uint32_t version = 0;
};

struct ExpertTable {
  uint64_t epoch = 0;
  std::shared_ptr<const LayerBlock> block;  // shared by the tables of one version
  std::vector<TableCopy> experts;           // by logical expert
};

}  // namespace moe
