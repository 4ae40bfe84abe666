// Switches prefetching off where it loses time, and tries again later. Fetching early spares a wait
// when the guess was right; it costs one when the link was busy with a wrong guess, or when an
// expert that left for it is needed back.
#pragma once

#include <cstdint>

namespace moe {

struct PrefetchGovernorOptions {
  int64_t window = 1024;     // steps of one measurement; a step is a forward of a layer
  int64_t pause = 8 * 1024;  // steps off after a lost window; doubled by each further loss
  int64_t longest_pause = 1 << 20;
  double least_gain = 0.05;  // a window is won if saved > (1 + least_gain) * cost
};

// What was learnt during one step, on the caller's clock.
struct PrefetchSample {
  int64_t saved_ns = 0;  // loads that no forward waited for, because they were prefetched
  int64_t cost_ns = 0;   // waits behind prefetches, and loads of experts that left for unused ones
};

// Not thread-safe. Starts switched on.
class PrefetchGovernor {
 public:
  explicit PrefetchGovernor(const PrefetchGovernorOptions& options = {});

  // Whether to prefetch in the next step.
  bool enabled() const { return enabled_; }

  // A step ends. Late news of prefetches that were made before a pause count in no window.
  void step(const PrefetchSample& sample);

  struct Stats {
    int64_t won = 0;  // windows
    int64_t lost = 0;
    int64_t steps_on = 0;
    int64_t steps_off = 0;
    int64_t saved_ns = 0;  // of all samples
    int64_t cost_ns = 0;
  };
  const Stats& stats() const { return stats_; }

 private:
  void judge();

  PrefetchGovernorOptions options_;
  bool enabled_ = true;
  int64_t left_;   // steps until the window or the pause ends
  int64_t pause_;  // the next one
  PrefetchSample window_;
  Stats stats_;
};

}  // namespace moe
