// Which experts a forward needs, in the order that eviction policies are told.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moe {

// The distinct experts of one forward's routing, by first appearance in (row, place), and the mean
// weight of each. Reused, it allocates only when a layer has more experts than any before.
class ForwardExperts {
 public:
  // ids and weights: (rows * top_k); weights may be null. Ids outside [0, experts) are none.
  void gather(const int32_t* ids, const float* weights, int64_t rows, int32_t top_k,
              int32_t experts) {
    distinct_.clear();
    seen_.assign(static_cast<size_t>(experts), false);
    mean_.assign(weights ? static_cast<size_t>(experts) : 0, 0.0f);
    for (int64_t p = 0; p < rows * top_k; ++p) {
      if (ids[p] < 0 || ids[p] >= experts) continue;
      const size_t expert = static_cast<size_t>(ids[p]);
      if (!seen_[expert]) distinct_.push_back(ids[p]);
      seen_[expert] = true;
      if (weights) mean_[expert] += weights[p];
    }
    for (float& sum : mean_) sum /= static_cast<float>(rows);
  }

  std::span<const int32_t> distinct() const { return distinct_; }
  std::span<const float> mean_weights() const { return mean_; }  // (experts), or empty

 private:
  std::vector<int32_t> distinct_;
  std::vector<bool> seen_;  // (experts)
  std::vector<float> mean_;
};

}  // namespace moe
