// What forwards of one layer count: relaxed atomics, added once per forward.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/metrics.h"

namespace moe {

class LayerCounters {
 public:
  LayerCounters(int32_t layer, int32_t candidates)
      : layer_(layer), expert_rows_(static_cast<size_t>(candidates)) {}

  // `ids`: (rows, top_k), -1 = none.
  void add(const ForwardReport& report, std::span<const int32_t> ids, int64_t nanoseconds);
  // Of a forward that is counted elsewhere.
  void add_time(int64_t nanoseconds);
  LayerMetrics read() const;

 private:
  using Counter = std::atomic<int64_t>;
  int32_t layer_;
  Counter forwards_{0}, rows_{0}, assignments_{0}, nonfinite_rows_{0}, dropped_{0}, nanoseconds_{0};
  std::vector<Counter> expert_rows_;
};

}  // namespace moe
