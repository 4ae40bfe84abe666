// HybriMoE's score: a moving average of what the router said, so that an expert which nearly won is
// kept too.
//
// All scores of a layer shrink by (1 - rate) when the layer is visited. They are kept divided by
// the layer's `scale`, the product of these factors, so that only the scored experts move.
#include <algorithm>
#include <numeric>

#include "store/policy_base.h"
#include "store/victim_heap.h"

namespace moe {
namespace {

constexpr double kSmallestScale = 1e-100;

class HybriMoe final : public PolicyBase {
 public:
  explicit HybriMoe(const EvictionOptions& options)
      : PolicyBase(options),
        rate_(options.hybrimoe_rate),
        top_(static_cast<size_t>(options.hybrimoe_top)),
        scale_(static_cast<size_t>(index().layers()), 1.0),
        score_(static_cast<size_t>(index().experts())) {
    keep("scale", &scale_);
    keep("score", &score_);
    int32_t most = 0;
    for (int32_t p = 0; p < index().layers(); ++p) {
      order_.emplace_back(index().first(p), index().experts(p));
      most = std::max(most, index().experts(p));
    }
    ranked_.reserve(static_cast<size_t>(most));
  }

  const char* name() const noexcept override { return "hybrimoe"; }

 private:
  using Key = std::pair<double, uint64_t>;  // score / scale, last use

  Key key(int32_t i) const { return {score_[static_cast<size_t>(i)], last_use(i)}; }
  VictimHeap<Key>& order(int32_t i) { return order_[static_cast<size_t>(index().position_of(i))]; }

  void visited(int32_t position, const ExpertAccess& access) noexcept override {
    fade(position);
    if (!access.probabilities.empty()) return score_top(position, access.probabilities);
    const double share = 1.0 / static_cast<double>(std::max<size_t>(1, access.experts.size()));
    for (const int32_t expert : access.experts) {
      const int32_t i = index().find({access.layer, expert});
      if (i >= 0) raise(i, share);
    }
  }

  void fade(int32_t position) {
    double& scale = scale_[static_cast<size_t>(position)];
    scale *= 1 - rate_;
    if (scale >= kSmallestScale) return;
    const int32_t first = index().first(position);
    for (int32_t i = first; i < first + index().experts(position); ++i)
      score_[static_cast<size_t>(i)] *= scale;
    scale = 1;
    order_[static_cast<size_t>(position)].rekey([this](int32_t i, Key& k) { k = key(i); });
  }

  void score_top(int32_t position, std::span<const float> p) {
    ranked_.resize(std::min(p.size(), static_cast<size_t>(index().experts(position))));
    std::iota(ranked_.begin(), ranked_.end(), 0);
    const auto likelier = [&](int32_t a, int32_t b) {
      const float x = p[static_cast<size_t>(a)], y = p[static_cast<size_t>(b)];
      return x > y || (x == y && a < b);
    };
    if (ranked_.size() > top_) {
      std::nth_element(ranked_.begin(), ranked_.begin() + static_cast<ptrdiff_t>(top_),
                       ranked_.end(), likelier);
      ranked_.resize(top_);
    }
    for (const int32_t expert : ranked_) {
      const float probability = p[static_cast<size_t>(expert)];
      if (probability > 0) raise(index().first(position) + expert, probability);
    }
  }

  void raise(int32_t i, double probability) {
    const double scale = scale_[static_cast<size_t>(index().position_of(i))];
    score_[static_cast<size_t>(i)] += rate_ * probability / scale;
    order(i).update(i, key(i));
  }

  void used(int32_t i) noexcept override { order(i).update(i, key(i)); }
  void add(int32_t i) noexcept override { order(i).insert(i, key(i)); }
  void remove(int32_t i) noexcept override { order(i).erase(i); }

  int32_t choose(const MayGo& may_go) const noexcept override {
    int32_t lowest = -1;
    Key least;
    for (int32_t p = 0; p < index().layers(); ++p) {
      const auto* node = order_[static_cast<size_t>(p)].least(may_go);
      if (!node) continue;
      const Key score{node->key.first * scale_[static_cast<size_t>(p)], node->key.second};
      if (lowest < 0 || score < least) least = score, lowest = node->index;
    }
    return lowest;
  }

  double rate_;
  size_t top_;
  std::vector<double> scale_;           // (layers)
  std::vector<double> score_;           // (experts), divided by the layer's scale
  std::vector<VictimHeap<Key>> order_;  // per layer
  std::vector<int32_t> ranked_;         // scratch
};

}  // namespace

Result<std::unique_ptr<EvictionPolicy>> make_hybrimoe(const EvictionOptions& options) {
  if (!(options.hybrimoe_rate > 0 && options.hybrimoe_rate < 1))
    return invalid_argument({}, "hybrimoe_rate is {}; wanted more than 0 and less than 1",
                            options.hybrimoe_rate);
  if (options.hybrimoe_top < 1)
    return invalid_argument({}, "hybrimoe_top is {}; wanted 1 or more", options.hybrimoe_top);
  return make_policy<HybriMoe>(options);
}

}  // namespace moe
