#include "placement/sample.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "placement/random.h"

namespace moe::placement {
namespace {
constexpr uint64_t kSeed = 20250401;
constexpr int64_t kSteps = 32;         // drawn for a prediction
constexpr double kManyPerExpert = 20;  // tokens per expert and step, beyond which all are active

// Stratified, so that frequent sets come as often as they should; then shuffled.
ExpertSets draw_from_sets(const ExpertSets& sets, int64_t count) {
  Random random(kSeed);
  std::vector<int64_t> drawn(count);
  const double stride = sets.total() / static_cast<double>(count);
  double end = sets.counts[0];
  for (int64_t i = 0, set = 0; i < count; ++i) {
    const double at = (static_cast<double>(i) + random.uniform()) * stride;
    while (at >= end && set + 1 < sets.size()) end += sets.counts[++set];
    drawn[i] = set;
  }
  for (int64_t i = count - 1; i > 0; --i) std::swap(drawn[i], drawn[random.below(i + 1)]);
  ExpertSets out;
  for (int64_t set : drawn) out.add(sets[set], 1);
  return out;
}

// Draws indices with probability proportional to their weight.
class Urn {
 public:
  explicit Urn(std::vector<double> weight) : weight_(std::move(weight)), sum_(weight_.size() + 1) {
    std::partial_sum(weight_.begin(), weight_.end(), sum_.begin() + 1);
    guide_.resize(2 * weight_.size());
    const double step = total() / static_cast<double>(guide_.size());
    for (int32_t g = 0, i = 0; g < static_cast<int32_t>(guide_.size()); ++g) {
      while (i + 1 < size() && sum_[i + 1] <= g * step) ++i;
      guide_[g] = i;
    }
  }
  double total() const { return sum_.back(); }
  int32_t draw(Random& random) const {
    const double u = random.uniform(), at = u * total();
    int32_t i = guide_[static_cast<size_t>(u * static_cast<double>(guide_.size()))];
    while (i > 0 && sum_[i] > at) --i;  // rounding
    while (i + 1 < size() && sum_[i + 1] <= at) ++i;
    return i;
  }
  // An index that `taken` does not hold: drawn, or after many tries the heaviest left.
  template <class Taken>
  int32_t draw_other(Random& random, Taken taken) const {
    for (int tries = 0; tries < 64; ++tries)
      if (const int32_t i = draw(random); weight_[i] > 0 && !taken(i)) return i;
    int32_t best = -1;
    for (int32_t i = 0; i < size(); ++i)
      if (!taken(i) && (best < 0 || weight_[i] > weight_[best])) best = i;
    return best;
  }

 private:
  int32_t size() const { return static_cast<int32_t>(weight_.size()); }

  std::vector<double> weight_, sum_;
  std::vector<int32_t> guide_;  // where to begin to look, by the number drawn
};

std::vector<double> picked(const std::vector<double>& from, const std::vector<int32_t>& which) {
  std::vector<double> out;
  out.reserve(which.size());
  for (int32_t i : which) out.push_back(from[i]);
  return out;
}

// Tokens choose groups by load, then experts of these by load.
ExpertSets draw_from_counts(const LayerProblem& layer, int64_t count) {
  const Workload& w = layer.workload;
  const int32_t size = layer.experts() / w.groups;
  const std::vector<double>& tokens = layer.usage.tokens;
  std::vector<Urn> members;
  std::vector<double> group_load;
  for (int32_t g = 0; g < w.groups; ++g) {
    const auto begin = tokens.begin() + static_cast<ptrdiff_t>(g) * size;
    members.emplace_back(std::vector<double>(begin, begin + size));
    group_load.push_back(members.back().total());
  }
  const Urn groups(group_load);
  Random random(kSeed);
  ExpertSets out;
  std::vector<int32_t> chosen, ids;
  const auto in = [](const std::vector<int32_t>& list) {
    return [&list](int32_t i) { return std::find(list.begin(), list.end(), i) != list.end(); };
  };
  const auto full = [&](int32_t g) {
    return std::count_if(ids.begin(), ids.end(), [&](int32_t e) { return e / size == g; }) == size;
  };
  for (int64_t t = 0; t < count; ++t) {
    chosen.clear(), ids.clear();
    while (static_cast<int32_t>(chosen.size()) < w.groups_per_token)
      chosen.push_back(groups.draw_other(random, in(chosen)));
    std::optional<Urn> among;
    if (w.groups > 1) among.emplace(picked(group_load, chosen));
    while (static_cast<int32_t>(ids.size()) < w.top_k) {
      const int32_t g =
          among ? chosen[among->draw_other(random, [&](int32_t i) { return full(chosen[i]); })] : 0;
      ids.push_back(g * size + members[g].draw_other(
                                   random, [&](int32_t i) { return in(ids)(g * size + i); }));
    }
    std::sort(ids.begin(), ids.end());
    out.add(ids, 1);
  }
  return out;
}

}  // namespace

ExpertSets draw_tokens(const LayerProblem& layer, int64_t count) {
  if (layer.usage.sets.size() > 0 && layer.usage.sets.total() > 0)
    return draw_from_sets(layer.usage.sets, count);
  return draw_from_counts(layer, count);
}

ExpertSets draw_steps(const LayerProblem& layer) {
  const auto tokens = static_cast<double>(layer.workload.tokens_per_step);
  if (tokens == 1 && layer.usage.sets.size() > 0) return layer.usage.sets;
  ExpertSets out;
  std::vector<int32_t> active;
  if (tokens * layer.workload.top_k > kManyPerExpert * layer.experts()) {
    for (int32_t e = 0; e < layer.experts(); ++e)
      if (layer.usage.tokens[e] > 0) active.push_back(e);
    out.add(active, 1);
    return out;
  }
  const auto per_step = static_cast<int64_t>(tokens);
  const int64_t steps = per_step == 1 ? 1024 : kSteps;
  const ExpertSets drawn = draw_tokens(layer, per_step * steps);
  std::vector<uint8_t> seen(layer.experts());
  for (int64_t step = 0; step < steps; ++step) {
    std::fill(seen.begin(), seen.end(), 0);
    active.clear();
    for (int64_t t = step * per_step; t < (step + 1) * per_step; ++t)
      for (int32_t e : drawn[t])
        if (!seen[e]) seen[e] = 1, active.push_back(e);
    std::sort(active.begin(), active.end());
    out.add(active, 1);
  }
  return out;
}

}  // namespace moe::placement
