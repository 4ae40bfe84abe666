// What became of prefetched experts, and of those that left for them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/eviction.h"
#include "store/expert_index.h"

namespace moe {

// What a prefetch did to a forward that needs an expert now.
enum class PrefetchEffect : int32_t {
  none,
  saved_load,  // it is here, because it was prefetched
  extra_load,  // it is not, because it left for one that nobody has used
};

// Not thread-safe. Ignores experts that it was not made for.
class PrefetchLedger {
 public:
  // Needs validate(layers).
  explicit PrefetchLedger(std::span<const LayerExperts> layers)
      : index_(layers),
        unused_(static_cast<size_t>(index_.experts())),
        displaced_(static_cast<size_t>(index_.experts()), -1),
        left_for_(static_cast<size_t>(index_.experts()), -1) {}

  // `id` was fetched early; `displaced` left for it ({}: nobody).
  void prefetched(ExpertId id, ExpertId displaced) {
    const int32_t i = index_.find(id), out = index_.find(displaced);
    if (i < 0) return;
    evicted(displaced);
    settle(i);
    unused_[static_cast<size_t>(i)] = true;
    displaced_[static_cast<size_t>(i)] = out;
    if (out >= 0) left_for_[static_cast<size_t>(out)] = i;
  }

  // `id` left for an expert that a forward needed.
  void evicted(ExpertId id) {
    const int32_t i = index_.find(id);
    if (i >= 0) unused_[static_cast<size_t>(i)] = false;
  }

  // A forward needs `id`, resident or not. Each effect is told once.
  PrefetchEffect used(ExpertId id) {
    const int32_t i = index_.find(id);
    if (i < 0) return PrefetchEffect::none;
    const bool missed = left_for_[static_cast<size_t>(i)] >= 0;
    const bool saved = unused_[static_cast<size_t>(i)];
    settle(i);
    if (saved) return forgive(i), PrefetchEffect::saved_load;
    return missed ? PrefetchEffect::extra_load : PrefetchEffect::none;
  }

 private:
  // Nobody is to blame any more for i's absence.
  void settle(int32_t i) {
    const int32_t culprit = left_for_[static_cast<size_t>(i)];
    if (culprit < 0) return;
    int32_t& blamed_for = displaced_[static_cast<size_t>(culprit)];
    if (blamed_for == i) blamed_for = -1;
    left_for_[static_cast<size_t>(i)] = -1;
  }

  // i was needed: loading it on demand would have pushed the same expert out.
  void forgive(int32_t i) {
    unused_[static_cast<size_t>(i)] = false;
    const int32_t out = displaced_[static_cast<size_t>(i)];
    if (out >= 0) left_for_[static_cast<size_t>(out)] = -1;
    displaced_[static_cast<size_t>(i)] = -1;
  }

  ExpertIndex index_;
  std::vector<bool> unused_;        // (experts): fetched early, resident, not used yet
  std::vector<int32_t> displaced_;  // (experts): who left for it; -1: nobody who matters
  std::vector<int32_t> left_for_;   // (experts): for whom it left; -1: for nobody
};

}  // namespace moe
