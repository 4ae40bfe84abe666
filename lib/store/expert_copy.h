// One copy: an expert of a layer, in one version, in one slot.
#pragma once

#include <cstdint>

#include "moe/expert_store.h"

namespace moe {

// There is one per slot. Guarded by the store's mutex, but for the slot's bytes while it is
// loading.
struct ExpertCopy {
  int32_t layer = -1;   // among the store's layers
  int32_t expert = -1;  // kSharedExpert for the shared one
  uint32_t version = 0;
  CopyState state = CopyState::empty;
  uint64_t digest = 0;
  int32_t leases = 0;  // waves and scrubs that use it now
  bool late = false;   // its move ended before it was filled, or freed: see settle_late()
  Status reason;       // why it failed
  int64_t next = -1;   // the slot of the expert's next copy
};

// Whether a loader writes to its slot.
inline bool in_flight(const ExpertCopy& copy) {
  return copy.state == CopyState::loading || copy.state == CopyState::verifying;
}

// The only way a copy changes state; anything else is a bug of the store (assert).
void transition(ExpertCopy& copy, CopyState to);

// What a layer knows of one of its experts.
struct StoreExpert {
  int64_t first = -1;       // the slot of its first copy
  Status reason;            // of the last load if that failed
  int64_t uses = 0;         // forwards that chose it, while its layer was paged
  int64_t evicted_at = -1;  // evictions of its slots' size, when it was evicted last
};

}  // namespace moe
