// Several canonical tensors in one go. What lies side by side, or inside one another as fused gate
// and up do, is read once, and held against the manifest's digests if there is one.
#pragma once

#include <span>

#include "checkpoint/checkpoint_impl.h"

namespace moe {

// Checkpoint::read_all().
Status read_parts(Checkpoint::Impl& checkpoint, std::span<const WeightRead> reads);

}  // namespace moe
