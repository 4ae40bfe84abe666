#include "store/predict_activation.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace moe {
namespace {

constexpr int64_t kMostCounts = int64_t{1} << 28;  // 1 GiB

}  // namespace

ActivationPredictor::ActivationPredictor(const ActivationPredictorOptions& options)
    : index_(options.layers), sequences_(options.sequences) {
  const size_t experts = static_cast<size_t>(index_.experts());
  const size_t layers = static_cast<size_t>(index_.layers());
  const size_t sequences = static_cast<size_t>(sequences_);
  uses_.resize(experts);
  norms_.resize(layers);
  past_.resize(sequences * experts);
  past_norms_.resize(sequences * layers);
  past_sums_.resize(sequences * layers);
  products_.resize(sequences * layers);
  matches_.resize(sequences);
  scratch_.reserve(experts);
}

Result<ActivationPredictor> ActivationPredictor::create(const ActivationPredictorOptions& options) {
  return guarded({}, [&]() -> Result<ActivationPredictor> {
    MOE_RETURN_IF_ERROR(validate(std::span(options.layers)));
    int64_t experts = 0;
    for (const LayerExperts& layer : options.layers) experts += layer.experts;
    if (options.sequences < 1 || options.sequences > kMostCounts / experts)
      return invalid_argument({}, "sequences is {}; wanted 1 to {} for {} experts",
                              options.sequences, kMostCounts / experts, experts);
    return ActivationPredictor(options);
  });
}

void ActivationPredictor::accessed(int32_t layer, std::span<const int32_t> experts) noexcept {
  const int32_t position = index_.position(layer);
  if (position < 0) return;
  current_ = position;
  for (const int32_t expert : experts) {
    const int32_t i = index_.find({layer, expert});
    if (i < 0) continue;
    norms_[static_cast<size_t>(position)] += 2 * uint64_t{uses_[static_cast<size_t>(i)]++} + 1;
    for (int32_t m = 0; m < remembered_; ++m) products_[row(m, position)] += past_[at(m, i)];
  }
}

double ActivationPredictor::similarity(int32_t m) const noexcept {
  double sum = 0;
  for (int32_t p = 0; p < index_.layers(); ++p) {
    const uint64_t product = products_[row(m, p)];
    if (product == 0) continue;
    sum += static_cast<double>(product) /
           std::sqrt(static_cast<double>(norms_[static_cast<size_t>(p)]) *
                     static_cast<double>(past_norms_[row(m, p)]));
  }
  return sum / index_.layers();
}

int32_t ActivationPredictor::most_similar() const noexcept {
  int32_t best = 0;
  double most = -1;
  for (int32_t m = 0; m < remembered_; ++m) {
    if (const double s = similarity(m); s > most) most = s, best = m;
  }
  return best;
}

void ActivationPredictor::sequence_ended() noexcept {
  const bool used = std::any_of(norms_.begin(), norms_.end(), [](uint64_t n) { return n > 0; });
  if (used) {
    const auto least = std::min_element(matches_.begin(), matches_.end());
    remember(remembered_ < sequences_ ? remembered_++
                                      : static_cast<int32_t>(least - matches_.begin()));
  }
  std::fill(uses_.begin(), uses_.end(), 0);
  std::fill(norms_.begin(), norms_.end(), 0);
  std::fill(products_.begin(), products_.end(), 0);
}

void ActivationPredictor::remember(int32_t m) noexcept {
  matches_[static_cast<size_t>(m)] = 0;
  std::copy(uses_.begin(), uses_.end(), past_.begin() + static_cast<ptrdiff_t>(at(m, 0)));
  for (int32_t p = 0; p < index_.layers(); ++p) {
    past_norms_[row(m, p)] = norms_[static_cast<size_t>(p)];
    uint64_t sum = 0;
    for (int32_t i = index_.first(p); i < index_.first(p) + index_.experts(p); ++i)
      sum += uses_[static_cast<size_t>(i)];
    past_sums_[row(m, p)] = sum;
  }
}

size_t ActivationPredictor::predict(int32_t horizon, std::span<PredictedExpert> out) noexcept {
  if (remembered_ == 0) return 0;
  const int32_t m = most_similar();
  ++matches_[static_cast<size_t>(m)];
  const int32_t layers = index_.layers();
  scratch_.clear();
  for (int32_t d = 1; d <= std::min(horizon, layers - 1); ++d) {
    const int32_t p = (current_ + d) % layers;
    const double nearness = 1 - d / (layers + 1.0);
    for (int32_t i = index_.first(p); i < index_.first(p) + index_.experts(p); ++i) {
      if (past_[at(m, i)] == 0) continue;
      const double share = past_[at(m, i)] / static_cast<double>(past_sums_[row(m, p)]);
      scratch_.push_back({index_.id(i), share * nearness});
    }
  }
  const size_t count = std::min(out.size(), scratch_.size());
  const auto sooner = [](const PredictedExpert& a, const PredictedExpert& b) {
    if (a.priority != b.priority) return a.priority > b.priority;
    return a.id.layer != b.id.layer ? a.id.layer < b.id.layer : a.id.expert < b.id.expert;
  };
  std::partial_sort(scratch_.begin(), scratch_.begin() + static_cast<ptrdiff_t>(count),
                    scratch_.end(), sooner);
  std::copy_n(scratch_.begin(), count, out.begin());
  return count;
}

}  // namespace moe
