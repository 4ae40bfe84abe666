#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>

#include "core/error.h"
#include "moe/usage.h"
#include "placement/set_counter.h"

namespace moe {
namespace {

ExpertSets ascending(const ExpertSets& sets) {
  std::vector<int64_t> order(sets.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::ranges::lexicographical_compare(sets[a], sets[b]);
  });
  ExpertSets out;
  for (int64_t set : order) out.add(sets[set], sets.counts[set]);
  return out;
}

// The last steps of one layer.
class LayerWindow {
 public:
  LayerWindow(const LayerExperts& layer, int32_t top_k, const UsageWindowOptions& options)
      : experts_(layer.experts),
        capacity_(options.steps),
        ring_(static_cast<size_t>(options.steps) * layer.experts),
        sums_(layer.experts) {
    if (options.max_sets > 0) sets_.emplace(options.max_sets, top_k);
    chosen_.reserve(top_k);
  }

  int32_t experts() const { return experts_; }
  int64_t steps() const {
    const std::lock_guard lock(mutex_);
    return std::min(finished_, capacity_);
  }

  void record(std::span<const int32_t> ids, int32_t top_k) {
    const std::lock_guard lock(mutex_);
    uint32_t* step = begin_step();
    for (size_t row = 0; row < ids.size(); row += top_k) {
      chosen_.clear();
      for (int32_t id : ids.subspan(row, top_k))
        if (id >= 0 && id < experts_) chosen_.push_back(id);
      for (int32_t id : chosen_) ++step[id], ++sums_[id];
      if (!sets_ || chosen_.empty()) continue;
      std::sort(chosen_.begin(), chosen_.end());
      chosen_.erase(std::unique(chosen_.begin(), chosen_.end()), chosen_.end());
      sets_->add(chosen_);
    }
    end_step();
  }

  void record(std::span<const int64_t> tokens) {
    const std::lock_guard lock(mutex_);
    uint32_t* step = begin_step();
    for (int32_t e = 0; e < experts_; ++e) {
      step[e] = static_cast<uint32_t>(tokens[e]);
      sums_[e] += step[e];
    }
    end_step();
  }

  // Without `layer`; sets in order of arrival.
  LayerUsage copy(bool keep_steps) const {
    const std::lock_guard lock(mutex_);
    LayerUsage out;
    out.tokens.assign(sums_.begin(), sums_.end());
    if (keep_steps)
      for (int64_t s = finished_ - std::min(finished_, capacity_); s < finished_; ++s)
        out.steps.insert(out.steps.end(), row(s), row(s) + experts_);
    if (sets_) out.sets = sets_->sets();
    return out;
  }

 private:
  const uint32_t* row(int64_t step) const { return ring_.data() + step % capacity_ * experts_; }

  // The oldest step leaves; its row, now zero, is that of the new one.
  uint32_t* begin_step() {
    uint32_t* oldest = ring_.data() + finished_ % capacity_ * experts_;
    for (int32_t e = 0; e < experts_; ++e) sums_[e] -= oldest[e];
    std::fill_n(oldest, experts_, 0u);
    return oldest;
  }
  void end_step() {
    if (++finished_ % capacity_ == 0 && sets_) sets_->fade();
  }

  const int32_t experts_;
  const int64_t capacity_;  // steps

  mutable std::mutex mutex_;    // of everything below
  std::vector<uint32_t> ring_;  // (capacity, experts)
  std::vector<uint64_t> sums_;  // (experts): of the ring
  std::optional<placement::SetCounter> sets_;
  std::vector<int32_t> chosen_;  // by one token
  int64_t finished_ = 0;         // steps, ever
};

Status validate(std::span<const LayerExperts> layers, int32_t top_k,
                const UsageWindowOptions& options) {
  if (layers.empty()) return invalid_argument({}, "a usage window of no layers");
  if (options.steps < 1 || options.max_sets < 0 || options.max_sets > INT32_MAX / 4)
    return invalid_argument({}, "a usage window of {} steps and {} sets", options.steps,
                            options.max_sets);
  if (!(options.coverage > 0 && options.coverage <= 1))
    return invalid_argument({}, "coverage is {}; wanted 0 < coverage <= 1", options.coverage);
  for (const LayerExperts& layer : layers)
    if (layer.layer < 0 || layer.experts < 1 || layer.experts > (1 << 20) || top_k < 1)
      return invalid_argument({.layer = layer.layer}, "a usage window of {} experts and top_k {}",
                              layer.experts, top_k);
  return {};
}

}  // namespace

struct UsageWindow::Impl {
  Impl(int32_t k, const UsageWindowOptions& o) : top_k(k), options(o) {}

  int32_t top_k;
  UsageWindowOptions options;
  std::map<int32_t, LayerWindow> layers;  // fixed once created

  Result<LayerWindow*> find(int32_t layer) {
    if (const auto found = layers.find(layer); found != layers.end()) return &found->second;
    return invalid_argument({.layer = layer}, "the usage window has no layer {}", layer);
  }
};

Result<UsageWindow> UsageWindow::create(std::span<const LayerExperts> layers, int32_t top_k,
                                        const UsageWindowOptions& options) {
  return guarded({}, [&]() -> Result<UsageWindow> {
    MOE_RETURN_IF_ERROR(validate(layers, top_k, options));
    auto impl = std::make_unique<Impl>(top_k, options);
    for (const LayerExperts& layer : layers)
      if (!impl->layers.try_emplace(layer.layer, layer, top_k, options).second)
        return invalid_argument({.layer = layer.layer}, "the usage window has layer {} twice",
                                layer.layer);
    return UsageWindow(std::move(impl));
  });
}

UsageWindow::UsageWindow(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
UsageWindow::UsageWindow(UsageWindow&&) noexcept = default;
UsageWindow& UsageWindow::operator=(UsageWindow&&) noexcept = default;
UsageWindow::~UsageWindow() = default;

Status UsageWindow::record(int32_t layer, std::span<const int32_t> ids, int32_t top_k) {
  if (top_k == 0) top_k = impl_->top_k;
  MOE_ASSIGN_OR_RETURN(LayerWindow* const window, impl_->find(layer));
  if (top_k < 1 || top_k > impl_->top_k)
    return invalid_argument({.layer = layer}, "top_k is {}; the usage window takes up to {}", top_k,
                            impl_->top_k);
  if (ids.size() % top_k != 0)
    return invalid_argument({.layer = layer}, "{} ids are no multiple of top_k {}", ids.size(),
                            top_k);
  for (int32_t id : ids)
    if (id < -1)
      return invalid_argument({.layer = layer}, "{} is no expert; wanted -1 (none) or more", id);
  if (!ids.empty()) window->record(ids, top_k);
  return {};
}

Status UsageWindow::record_counts(int32_t layer, std::span<const int64_t> tokens) {
  MOE_ASSIGN_OR_RETURN(LayerWindow* const window, impl_->find(layer));
  if (tokens.size() != static_cast<size_t>(window->experts()))
    return invalid_argument({.layer = layer}, "{} counts for {} experts", tokens.size(),
                            window->experts());
  for (size_t e = 0; e < tokens.size(); ++e)
    if (tokens[e] < 0 || tokens[e] > int64_t{UINT32_MAX})
      return invalid_argument({.layer = layer, .expert = static_cast<int32_t>(e)},
                              "{} tokens in one step", tokens[e]);
  window->record(tokens);
  return {};
}

int64_t UsageWindow::steps(int32_t layer) const {
  const Result<LayerWindow*> window = impl_->find(layer);
  return window.ok() ? (*window)->steps() : 0;
}

UsageTrace UsageWindow::snapshot() const {
  UsageTrace trace{impl_->top_k, {}};
  for (const auto& [index, window] : impl_->layers) {
    LayerUsage layer = window.copy(impl_->options.keep_steps);
    layer.layer = index;
    layer.sets = ascending(layer.sets);
    if (impl_->options.coverage < 1) layer.sets = prune(layer.sets, impl_->options.coverage);
    trace.layers.push_back(std::move(layer));
  }
  return trace;
}

}  // namespace moe
