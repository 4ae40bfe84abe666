#include "store/governor.h"

#include <algorithm>

namespace moe {

PrefetchGovernor::PrefetchGovernor(const PrefetchGovernorOptions& options)
    : options_(options), left_(options.window), pause_(options.pause) {}

void PrefetchGovernor::step(const PrefetchSample& sample) {
  stats_.saved_ns += sample.saved_ns;
  stats_.cost_ns += sample.cost_ns;
  ++(enabled_ ? stats_.steps_on : stats_.steps_off);
  if (enabled_) {
    window_.saved_ns += sample.saved_ns;
    window_.cost_ns += sample.cost_ns;
  }
  if (--left_ > 0) return;
  if (enabled_) return judge();
  enabled_ = true;
  left_ = options_.window;
}

// A window without any effect is neither won nor lost.
void PrefetchGovernor::judge() {
  const double saved = static_cast<double>(window_.saved_ns);
  const double cost = static_cast<double>(window_.cost_ns);
  const bool lost = cost > 0 && saved <= (1 + options_.least_gain) * cost;
  stats_.lost += lost;
  stats_.won += !lost && saved > 0;
  if (!lost && saved > 0) pause_ = options_.pause;
  enabled_ = !lost;
  left_ = lost ? pause_ : options_.window;
  if (lost) pause_ = std::min(2 * pause_, options_.longest_pause);
  window_ = {};
}

}  // namespace moe
