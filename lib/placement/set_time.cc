#include "placement/set_time.h"

#include <algorithm>

namespace moe::placement {

int32_t SetTimer::time(std::span<const int32_t> set, const std::vector<RankMask>& holders) {
  std::fill_n(load_.begin(), ranks_, 0);
  flexible_.clear();
  int32_t unplaced = 0, busiest = 0;
  for (int32_t expert : set) {
    const RankMask ranks = holders[expert];
    if (ranks == 0)
      ++unplaced;
    else if ((ranks & (ranks - 1)) != 0)
      flexible_.push_back({ranks, -1});
    else
      busiest = std::max(busiest, ++load_[std::countr_zero(ranks)]);
  }
  if (unplaced > 0) return static_cast<int32_t>(set.size()) + unplaced;
  const int32_t forced = busiest;
  for (Flexible& expert : flexible_) {
    for (RankMask left = expert.ranks; left != 0; left &= left - 1) {
      const int32_t rank = std::countr_zero(left);
      if (expert.at < 0 || load_[rank] < load_[expert.at]) expert.at = rank;
    }
    busiest = std::max(busiest, ++load_[expert.at]);
  }
  const int32_t ideal = std::max(forced, static_cast<int32_t>((set.size() + ranks_ - 1) / ranks_));
  while (busiest > ideal) {
    const auto rank = std::find(load_.begin(), load_.begin() + ranks_, busiest) - load_.begin();
    if (!relieve(static_cast<int32_t>(rank))) break;
    busiest = *std::max_element(load_.begin(), load_.begin() + ranks_);
  }
  return busiest;
}

// Breadth first from `rank` along experts that could go elsewhere, to a rank with two less.
bool SetTimer::relieve(int32_t rank) {
  std::array<int32_t, kMaskRanks> via, queue;
  RankMask seen = RankMask{1} << rank;
  int32_t tail = 0;
  queue[tail++] = rank;
  for (int32_t head = 0; head < tail; ++head) {
    for (int32_t i = 0; i < static_cast<int32_t>(flexible_.size()); ++i) {
      if (flexible_[i].at != queue[head]) continue;
      for (RankMask fresh = flexible_[i].ranks & ~seen; fresh != 0; fresh &= fresh - 1) {
        int32_t next = std::countr_zero(fresh);
        seen |= RankMask{1} << next;
        via[next] = i;
        if (load_[next] + 2 > load_[rank]) {
          queue[tail++] = next;
          continue;
        }
        --load_[rank];
        ++load_[next];
        while (next != rank) {
          const int32_t from = flexible_[via[next]].at;
          flexible_[via[next]].at = next;
          next = from;
        }
        return true;
      }
    }
  }
  return false;
}

}  // namespace moe::placement
