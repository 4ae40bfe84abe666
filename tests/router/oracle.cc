#include "oracle.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>

namespace moe::test {
namespace {

using Real = long double;
constexpr Real kNone = -std::numeric_limits<Real>::infinity();

Real sigmoid(Real x) { return 1 / (1 + std::exp(-x)); }

struct Oracle {
  const OracleRule& rule;
  const OracleRow& row;
  const RouterSpec& spec = rule.spec;
  const int n = spec.candidates();

  std::vector<bool> candidate = std::vector<bool>(n);
  std::vector<Real> logit = std::vector<Real>(n), score = std::vector<Real>(n);
  OracleChoice result;

  void take_candidates() {
    for (int i = 0; i < n; ++i) {
      const bool finite = std::isfinite(row.logits[i]);
      result.nonfinite |= !finite;
      candidate[i] = finite && (row.mask.empty() || row.mask[i]);
      const Real l = row.logits[i];
      logit[i] = spec.softcap > 0 ? spec.softcap * std::tanh(l / spec.softcap) : l;
    }
  }

  std::vector<int> candidates() const {
    std::vector<int> all;
    for (int i = 0; i < n; ++i)
      if (candidate[i]) all.push_back(i);
    return all;
  }

  Real softmax(int i, const std::vector<int>& over) const {
    Real max = kNone, sum = 0;
    for (int j : over) max = std::max(max, logit[j]);
    for (int j : over) sum += std::exp(logit[j] - max);
    return std::exp(logit[i] - max) / sum;
  }

  void make_scores() {
    const std::vector<int> all = candidates();
    Real max = kNone, sum = 0;
    for (int j : all) max = std::max(max, logit[j]);
    for (int j : all) sum += std::exp(logit[j] - max);
    for (int i : all) switch (spec.scoring) {
        case Scoring::softmax: score[i] = std::exp(logit[i] - max) / sum; break;
        case Scoring::sigmoid: score[i] = sigmoid(logit[i]); break;
        case Scoring::sqrt_softplus:
          score[i] =
              std::sqrt(std::max(logit[i], Real(0)) + std::log1p(std::exp(-std::abs(logit[i]))));
          break;
        case Scoring::identity: score[i] = logit[i];
      }
  }

  // Keys are floats where a bias or a sum of two enters, exact otherwise.
  bool rounded() const {
    return !rule.selection_bias.empty() ||
           (spec.num_groups > 1 && spec.group_score == GroupScore::top2_sum);
  }
  void make_keys() {
    result.keys.assign(n, kNone);
    for (int i : candidates()) {
      Real key = score[i];
      if (rounded()) {
        const float bias = rule.selection_bias.empty() ? 0 : rule.selection_bias[i];
        const float sum = static_cast<float>(static_cast<double>(score[i]) + bias);
        key = std::isfinite(sum) ? sum : kNone;
      }
      if (key == kNone) candidate[i] = false;
      result.keys[i] = key;
    }
  }

  // Where long double itself can no longer tell two scores apart, their logits still can.
  bool before(int a, int b) const {
    if (result.keys[a] != result.keys[b]) return result.keys[a] > result.keys[b];
    if (!rounded() && row.logits[a] != row.logits[b]) return row.logits[a] > row.logits[b];
    return a < b;
  }

  void limit_groups() {
    const int groups = spec.num_groups, size = n / groups;
    std::vector<std::vector<int>> members(groups);
    for (int i : candidates()) members[i / size].push_back(i);
    result.group_keys.assign(groups, kNone);
    for (int g = 0; g < groups; ++g) {
      auto& m = members[g];
      std::sort(m.begin(), m.end(), [&](int a, int b) { return before(a, b); });
      if (m.empty()) continue;
      if (spec.group_score == GroupScore::max) result.group_keys[g] = result.keys[m[0]];
      if (spec.group_score == GroupScore::top2_sum)
        result.group_keys[g] =
            m.size() < 2 ? -FLT_MAX
                         : std::max<Real>(-FLT_MAX, static_cast<float>(result.keys[m[0]]) +
                                                        static_cast<float>(result.keys[m[1]]));
    }
    std::vector<int> order(groups);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) {
      if (members[a].empty() || members[b].empty())
        return members[a].empty() == members[b].empty() ? a < b : members[b].empty();
      if (spec.group_score == GroupScore::max) return before(members[a][0], members[b][0]);
      if (result.group_keys[a] != result.group_keys[b])
        return result.group_keys[a] > result.group_keys[b];
      return a < b;
    });
    for (int place = spec.top_groups; place < groups; ++place)
      for (int i : members[order[place]]) candidate[i] = false;
  }

  void choose() {
    std::vector<int> order = candidates();
    std::sort(order.begin(), order.end(), [&](int a, int b) { return before(a, b); });
    if (spec.selection == Selection::token_lookup) {
      order.clear();
      for (int place = 0; place < rule.top_k; ++place)
        if (candidate[row.lookup[place]]) order.push_back(static_cast<int>(row.lookup[place]));
    }
    if (static_cast<int>(order.size()) > rule.top_k) order.resize(rule.top_k);
    result.ids.assign(order.begin(), order.end());
    result.chosen = static_cast<int32_t>(order.size());
  }

  // architectures.md section 3, line by line.
  Real sparsemixer(int place) const {
    const int chosen = result.ids[place];
    std::vector<int> keep;
    for (int j : candidates()) {
      if (place == 1 && j == result.ids[0]) continue;
      const Real f = std::max(std::abs(logit[j]), logit[chosen]);
      if (!((logit[chosen] - logit[j]) / f > 2 * static_cast<Real>(spec.sparsemixer_epsilon)))
        keep.push_back(j);
    }
    return softmax(chosen, keep);
  }

  void weigh() {
    const std::vector<int> selected(result.ids.begin(), result.ids.end());
    auto& w = result.weights;
    for (size_t place = 0; place < selected.size(); ++place) {
      const int i = selected[place];
      if (spec.selection == Selection::sparsemixer)
        w.push_back(sparsemixer(static_cast<int>(place)));
      else if (spec.weighting == Weighting::softmax_of_selected_logits)
        w.push_back(softmax(i, selected));
      else if (spec.weighting == Weighting::sigmoid_of_logit)
        w.push_back(sigmoid(logit[i]));
      else
        w.push_back(score[i]);
    }
    Real sum = 0, powers = 0, divisor = 1;
    for (Real x : w) sum += x, powers += std::pow(std::abs(x), static_cast<Real>(spec.norm_power));
    if (spec.normalize == Normalize::sum_plus_epsilon) divisor = sum + spec.epsilon;
    if (spec.normalize == Normalize::sum_at_least_epsilon)
      divisor = std::max<Real>(sum, spec.epsilon);
    if (spec.normalize == Normalize::p_norm)
      divisor = std::pow(powers, 1 / static_cast<Real>(spec.norm_power));
    if (divisor == 0) divisor = 1;
    for (size_t place = 0; place < w.size(); ++place) {
      w[place] = w[place] / divisor * spec.scaling;
      if (!rule.per_expert_scale.empty()) w[place] *= rule.per_expert_scale[selected[place]];
    }
    result.ids.resize(rule.top_k, -1);
    w.resize(rule.top_k, 0);
  }

  OracleChoice run() {
    take_candidates();
    make_scores();
    make_keys();
    if (spec.num_groups > 1) limit_groups();
    choose();
    weigh();
    return result;
  }
};

}  // namespace

OracleChoice oracle(const OracleRule& rule, const OracleRow& row) {
  return Oracle{rule, row}.run();
}

}  // namespace moe::test
