// Which sets contain an expert.
#pragma once

#include <span>
#include <vector>

#include "moe/usage.h"

namespace moe::placement {

class SetIndex {
 public:
  SetIndex(const ExpertSets& sets, int32_t experts) : first_(experts + 1, 0) {
    for (int32_t e : sets.experts) ++first_[e + 1];
    for (int32_t e = 0; e < experts; ++e) first_[e + 1] += first_[e];
    sets_.resize(sets.experts.size());
    std::vector<int64_t> next(first_.begin(), first_.end() - 1);
    for (int64_t i = 0; i < sets.size(); ++i)
      for (int32_t e : sets[i]) sets_[next[e]++] = static_cast<int32_t>(i);
  }
  std::span<const int32_t> operator[](int32_t expert) const {
    return {sets_.data() + first_[expert],
            static_cast<size_t>(first_[expert + 1] - first_[expert])};
  }

 private:
  std::vector<int64_t> first_;
  std::vector<int32_t> sets_;
};

}  // namespace moe::placement
