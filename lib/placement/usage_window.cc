#include <algorithm>
#include <cstring>
#include <string>

#include <absl/container/flat_hash_map.h>
#include <absl/strings/string_view.h>

#include "core/error.h"
#include "moe/usage.h"

namespace moe {
namespace {

// How often each distinct set was seen. The key is the ascending ids' bytes.
class SetCounter {
 public:
  explicit SetCounter(int64_t max_sets) : max_sets_(max_sets) {}

  void add(std::span<const int32_t> ascending) {
    const absl::string_view key(reinterpret_cast<const char*>(ascending.data()),
                                ascending.size_bytes());
    if (auto found = counts_.find(key); found != counts_.end())
      ++found->second;
    else if (static_cast<int64_t>(counts_.size()) < max_sets_)
      counts_.emplace(std::string(key.data(), key.size()), 1.0);
  }

  // Halves all counts and forgets what was seen but once.
  void fade() {
    absl::erase_if(counts_, [](auto& entry) { return (entry.second /= 2) < 1; });
  }

  ExpertSets sets() const {
    std::vector<std::pair<std::vector<int32_t>, double>> sorted;
    for (const auto& [key, count] : counts_) {
      std::vector<int32_t> ids(key.size() / sizeof(int32_t));
      std::memcpy(ids.data(), key.data(), key.size());
      sorted.emplace_back(std::move(ids), count);
    }
    std::sort(sorted.begin(), sorted.end());
    ExpertSets out;
    for (const auto& [ids, count] : sorted) out.add(ids, count);
    return out;
  }

 private:
  int64_t max_sets_;
  absl::flat_hash_map<std::string, double> counts_;
};

}  // namespace

struct UsageWindow::Impl {
  int32_t layers, experts, top_k;
  UsageWindowOptions options;
  std::vector<uint32_t> ring;  // (options.steps + 1, layers, experts): one is in progress
  std::vector<uint64_t> sums;  // (layers, experts): of the finished steps in the window
  std::vector<SetCounter> counters;
  std::vector<int32_t> scratch;
  int64_t finished = 0;  // steps, ever

  size_t row() const { return static_cast<size_t>(layers) * experts; }
  int64_t rows() const { return int64_t{options.steps} + 1; }
  uint32_t* current() { return ring.data() + (finished % rows()) * row(); }
};

Result<UsageWindow> UsageWindow::create(int32_t layers, int32_t experts, int32_t top_k,
                                        const UsageWindowOptions& options) {
  return guarded({}, [&]() -> Result<UsageWindow> {
    if (layers < 1 || experts < 1 || top_k < 1 || top_k > experts)
      return invalid_argument({}, "a window of {} layers, {} experts, top_k {}", layers, experts,
                              top_k);
    if (options.steps < 1 || options.max_sets < 0)
      return invalid_argument({}, "a window of {} steps and {} sets", options.steps,
                              options.max_sets);
    int64_t cells = 0;
    if (__builtin_mul_overflow(int64_t{layers} * experts, int64_t{options.steps} + 1, &cells) ||
        cells > INT64_MAX / 4)
      return invalid_argument({}, "{} steps x {} layers x {} experts overflow", options.steps,
                              layers, experts);
    auto impl = std::make_unique<Impl>(Impl{layers, experts, top_k, options, {}, {}, {}, {}});
    impl->ring.assign(cells, 0);
    impl->sums.assign(impl->row(), 0);
    impl->counters.assign(options.max_sets > 0 ? layers : 0, SetCounter(options.max_sets));
    impl->scratch.reserve(top_k);
    return UsageWindow(std::move(impl));
  });
}

UsageWindow::UsageWindow(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
UsageWindow::UsageWindow(UsageWindow&&) noexcept = default;
UsageWindow& UsageWindow::operator=(UsageWindow&&) noexcept = default;
UsageWindow::~UsageWindow() = default;

Status UsageWindow::record(int32_t layer, std::span<const int32_t> ids) {
  return guarded({.layer = layer, .phase = Phase::route}, [&]() -> Status {
    Impl& w = *impl_;
    if (layer < 0 || layer >= w.layers)
      return invalid_argument({}, "layer {} of a window of {}", layer, w.layers);
    if (ids.size() % w.top_k != 0)
      return invalid_argument({}, "{} ids are no multiple of top_k {}", ids.size(), w.top_k);
    for (int32_t id : ids)
      if (id < -1 || id >= w.experts)
        return invalid_argument({.expert = id}, "wanted -1 to {}", w.experts - 1);
    uint32_t* counts = w.current() + static_cast<size_t>(layer) * w.experts;
    for (size_t row = 0; row < ids.size(); row += w.top_k) {
      w.scratch.clear();
      for (int32_t id : ids.subspan(row, w.top_k)) {
        if (id < 0) continue;
        ++counts[id];
        w.scratch.push_back(id);
      }
      if (w.counters.empty() || w.scratch.empty()) continue;
      std::sort(w.scratch.begin(), w.scratch.end());
      w.counters[layer].add(w.scratch);
    }
    return {};
  });
}

Status UsageWindow::record_counts(int32_t layer, std::span<const int64_t> tokens) {
  Impl& w = *impl_;
  if (layer < 0 || layer >= w.layers || tokens.size() != static_cast<size_t>(w.experts))
    return invalid_argument({.layer = layer}, "{} counts for layer {}; the window has {} x {}",
                            tokens.size(), layer, w.layers, w.experts);
  uint32_t* counts = w.current() + static_cast<size_t>(layer) * w.experts;
  for (int32_t e = 0; e < w.experts; ++e)
    if (tokens[e] < 0 || tokens[e] > int64_t{UINT32_MAX} - counts[e])
      return invalid_argument({.layer = layer, .expert = e}, "{} tokens in one step", tokens[e]);
  for (int32_t e = 0; e < w.experts; ++e) counts[e] += static_cast<uint32_t>(tokens[e]);
  return {};
}

void UsageWindow::advance() {
  Impl& w = *impl_;
  const uint32_t* done = w.current();
  for (size_t i = 0; i < w.row(); ++i) w.sums[i] += done[i];
  ++w.finished;
  uint32_t* oldest = w.current();  // leaves the window; becomes the step in progress
  for (size_t i = 0; i < w.row(); ++i) w.sums[i] -= oldest[i];
  std::fill_n(oldest, w.row(), 0u);
  if (w.finished % w.options.steps == 0)
    for (SetCounter& counter : w.counters) counter.fade();
}

int64_t UsageWindow::steps() const noexcept {
  return std::min<int64_t>(impl_->finished, impl_->options.steps);
}

UsageTrace UsageWindow::snapshot() const {
  const Impl& w = *impl_;
  UsageTrace trace;
  trace.top_k = w.top_k;
  for (int32_t l = 0; l < w.layers; ++l) {
    LayerUsage layer;
    layer.layer = l;
    const size_t offset = static_cast<size_t>(l) * w.experts;
    layer.tokens.assign(w.sums.begin() + offset, w.sums.begin() + offset + w.experts);
    if (w.options.keep_steps)
      for (int64_t step = w.finished - steps(); step < w.finished; ++step) {
        const uint32_t* row = w.ring.data() + (step % w.rows()) * w.row() + offset;
        layer.steps.insert(layer.steps.end(), row, row + w.experts);
      }
    if (!w.counters.empty()) layer.sets = w.counters[l].sets();
    trace.layers.push_back(std::move(layer));
  }
  return trace;
}

}  // namespace moe
