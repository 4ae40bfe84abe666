// What a wave needs to know about one layer: which slot serves each expert, and the router weights
// and shared expert of the same version. Small, immutable once published.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "store/layer_block.h"

namespace moe {

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
  std::unique_ptr<DeviceCopy> copy;         // null on the CPU
};

}  // namespace moe
