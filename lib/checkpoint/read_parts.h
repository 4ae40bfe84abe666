// Several canonical tensors in one go. What lies side by side, or inside one another as fused gate
// and up do, is read once.
#pragma once

#include <span>

#include "checkpoint/layer_set.h"
#include "checkpoint/tensor_directory.h"
#include "core/batch_reader.h"
#include "moe/weights.h"

namespace moe {

// Checkpoint::read_all().
Status read_parts(const LayerSet& layers, const TensorDirectory& files, BatchReader& reader,
                  std::span<const WeightRead> reads);

}  // namespace moe
