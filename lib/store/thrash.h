// Notices when a pool is too small for its traffic: experts come back soon after they were evicted.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moe {

// Of one pool. A miss is a return if the expert was evicted fewer evictions ago than the pool has
// slots: with twice the slots it would have been a hit (the refault distance of Linux's page
// cache). A window in which at least half of all uses are returns is thrashing; it ends with a
// window in which fewer than a quarter are. Not thread-safe.
class Thrash {
 public:
  enum class News { none, began, ended };

  void evicted(int64_t& evicted_at) { evicted_at = evictions_++; }

  // A wave used an expert; `evicted_at` is -1 if it was never evicted.
  News used(bool hit, int64_t evicted_at, int64_t slots) {
    ++uses_;
    returns_ += !hit && evicted_at >= 0 && evictions_ - evicted_at <= slots;
    if (uses_ < std::max<int64_t>(128, 4 * slots)) return News::none;
    const bool now = thrashing_ ? 4 * returns_ >= uses_ : 2 * returns_ >= uses_;
    uses_ = returns_ = 0;
    if (now == thrashing_) return News::none;
    thrashing_ = now;
    return now ? News::began : News::ended;
  }
  bool thrashing() const { return thrashing_; }

 private:
  int64_t evictions_ = 0;
  int64_t uses_ = 0, returns_ = 0;  // of the window
  bool thrashing_ = false;
};

}  // namespace moe
