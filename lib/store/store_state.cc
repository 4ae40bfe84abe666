#include "store/store_state.h"

#include <algorithm>

namespace moe {

StoreLayer* StoreState::find(int32_t layer) {
  const auto at = std::lower_bound(specs.begin(), specs.end(), layer,
                                   [](const LayerSpec& s, int32_t l) { return s.layer < l; });
  return at != specs.end() && at->layer == layer
             ? layers[static_cast<size_t>(at - specs.begin())].get()
             : nullptr;
}

ExpertCopy* StoreState::find_copy(const StoreLayer& layer, Need need) const {
  const Compute& compute = compute_of(layer, need.expert);
  auto& copies = const_cast<SlotClass&>(classes[compute.slot_class]).copies;
  ExpertCopy* found = nullptr;
  for (int64_t at = record(const_cast<StoreLayer&>(layer), need.expert).first; at >= 0;) {
    ExpertCopy& copy = copies[static_cast<size_t>(at)];
    if (copy.version == need.version && copy.state == CopyState::ready) return &copy;
    if (copy.version == need.version && !found) found = &copy;
    at = copy.next;
  }
  return found;
}

bool StoreState::has_other(const StoreLayer& layer, const ExpertCopy& copy) const {
  const auto& copies = classes[compute_of(layer, copy.expert).slot_class].copies;
  for (int64_t at = record(const_cast<StoreLayer&>(layer), copy.expert).first; at >= 0;) {
    const ExpertCopy& theirs = copies[static_cast<size_t>(at)];
    if (&theirs != &copy && theirs.version == copy.version && theirs.state == CopyState::ready)
      return true;
    at = theirs.next;
  }
  return false;
}

int64_t StoreState::ready_slot(const StoreLayer& layer, Need need) const {
  auto lock = locked();
  const ExpertCopy* copy = find_copy(layer, need);
  return copy && copy->state == CopyState::ready ? slot_of(compute_of(layer, need.expert), *copy)
                                                 : -1;
}

std::shared_ptr<Version> StoreState::find_version(uint32_t number) const {
  for (const auto& version : versions)
    if (version->number == number) return version;
  return nullptr;
}

}  // namespace moe
