// The rule of ReplicaChoice::position_hash, for host and device.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace moe {

// Which of `copies` (> 0) serves the experts of global token `token`: vLLM's kernel.
MOE_HOST_DEVICE inline int32_t replica_by_position(int64_t token, int32_t copies) {
  return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint64_t>(token) * 2654435769u) %
                              static_cast<uint32_t>(copies));
}

}  // namespace moe
