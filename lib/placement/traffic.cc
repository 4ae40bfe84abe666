// Experts that tokens choose together belong on one node: then a token visits fewer nodes. The
// opposite of what subset planning wants (see subset.cc), hence the objective decides.
#include <algorithm>
#include <limits>
#include <numeric>

#include "placement/balanced.h"
#include "placement/eplb.h"
#include "placement/evaluate.h"
#include "placement/replica_hash.h"
#include "placement/sample.h"

namespace moe {
namespace placement {
namespace {

constexpr int64_t kTrafficPairs = 400'000'000;  // looked at, all layers together

// Which nodes drawn tokens visit, when slots trade places. Copies of an expert serve tokens by
// position; each slot has its own tokens then, and an exchange of slots changes nothing else.
class Visits {
 public:
  Visits(const LayerProblem& layer, const ExpertSets& tokens, const Assignment& a)
      : cluster_(layer.cluster), by_node_(cluster_.nodes() > 1) {
    units_ = by_node_ ? cluster_.nodes() : cluster_.ranks();
    weigh_units();
    unit_.resize(a.slots());
    tokens_of_.resize(a.slots());
    slots_of_.resize(tokens.size());
    std::vector<std::vector<int32_t>> slots_of_expert(layer.experts());
    for (int32_t s = 0; s < a.slots(); ++s) {
      unit_[s] = unit_of_rank(a.rank(s));
      if (a.expert(s) >= 0) slots_of_expert[a.expert(s)].push_back(s);
    }
    for (int64_t t = 0; t < tokens.size(); ++t)
      for (int32_t e : tokens[t]) {
        const auto& copies = slots_of_expert[e];
        const int32_t item = copies[replica_by_position(t, static_cast<int32_t>(copies.size()))];
        slots_of_[t].push_back(item);
        tokens_of_[item].push_back(static_cast<int32_t>(t));
      }
    count_.assign(tokens.size() * units_, 0);
    for (int64_t t = 0; t < tokens.size(); ++t)
      for (int32_t item : slots_of_[t]) ++count_[t * units_ + unit_[item]];
    company_.assign(static_cast<size_t>(a.slots()) * units_, 0);
    for (int64_t t = 0; t < tokens.size(); ++t)
      for (int32_t u = 0; u < units_; ++u) {
        if (count_[t * units_ + u] == 0) continue;
        cost_ += unit_cost_[u];
        add_company(t, u, +1);
      }
  }

  double cost() const { return cost_; }
  int32_t unit(int32_t item) const { return unit_[item]; }

  // Of trading places; exact but for tokens that use both.
  double estimate(int32_t a, int32_t b) const {
    const int32_t from = unit_[a], to = unit_[b];
    return lonely(a, to) - lonely(a, from) + lonely(b, from) - lonely(b, to);
  }

  void trade(int32_t a, int32_t b) {
    const int32_t from = unit_[a], to = unit_[b];
    move(a, to);
    move(b, from);
  }

 private:
  int32_t unit_of_rank(int32_t rank) const { return by_node_ ? cluster_.node(rank) : rank; }

  // A visit costs what the link to the unit costs, on average over where tokens come from.
  void weigh_units() {
    std::vector<double> sum(units_, 0.0), ways(units_, 0.0);
    for (int32_t to = 0; to < cluster_.ranks(); ++to)
      for (int32_t from = 0; from < cluster_.ranks(); ++from) {
        if (unit_of_rank(from) == unit_of_rank(to)) continue;
        sum[unit_of_rank(to)] += cluster_.byte_seconds(from, to);
        ways[unit_of_rank(to)] += 1;
      }
    double most = 0;
    for (int32_t u = 0; u < units_; ++u) most = std::max(most, sum[u] /= std::max(ways[u], 1.0));
    for (double& s : sum) s = most > 0 ? s / most : 1;
    unit_cost_ = std::move(sum);
  }

  // Cost of the tokens for which `item` would be alone in `unit`.
  double lonely(int32_t item, int32_t unit) const {
    return unit_cost_[unit] * (static_cast<double>(tokens_of_[item].size()) -
                               company_[static_cast<size_t>(item) * units_ + unit]);
  }

  // company(item, unit): tokens of the item that have another item in the unit.
  void add_company(int64_t t, int32_t unit, int32_t sign) {
    const int32_t there = count_[t * units_ + unit];
    for (int32_t item : slots_of_[t])
      if (there - (unit_[item] == unit) > 0)
        company_[static_cast<size_t>(item) * units_ + unit] += sign;
  }

  void move(int32_t item, int32_t to) {
    const int32_t from = unit_[item];
    for (int32_t t : tokens_of_[item]) add_company(t, from, -1), add_company(t, to, -1);
    unit_[item] = to;
    for (int32_t t : tokens_of_[item]) {
      if (--count_[int64_t{t} * units_ + from] == 0) cost_ -= unit_cost_[from];
      if (count_[int64_t{t} * units_ + to]++ == 0) cost_ += unit_cost_[to];
      add_company(t, from, +1);
      add_company(t, to, +1);
    }
  }

  const Cluster& cluster_;
  bool by_node_;
  int32_t units_;
  std::vector<double> unit_cost_;                // (units), the costliest is 1
  std::vector<int32_t> unit_;                    // (items): an item is what began in that slot
  std::vector<std::vector<int32_t>> tokens_of_;  // (items)
  std::vector<std::vector<int32_t>> slots_of_;   // (tokens): items
  std::vector<uint16_t> count_;                  // (tokens, units)
  std::vector<int32_t> company_;                 // (items, units)
  double cost_ = 0;
};

// Swaps slots of an assignment; items wander with their experts.
class TrafficSearch {
 public:
  TrafficSearch(const LayerProblem& layer, const ExpertSets& tokens, Assignment& a, double cap,
                int64_t max_pairs)
      : a_(a), visits_(layer, tokens, a), cap_(cap), pairs_left_(max_pairs), item_(a.slots()) {
    for (int32_t s = 0; s < a.slots(); ++s) item_[s] = s;
  }

  double cost() const { return visits_.cost(); }

  // Brings every rank under the cap, with the swaps that cost fewest visits for their relief.
  bool repair() {
    for (int64_t steps = 4 * int64_t{a_.slots()}; steps > 0; --steps) {
      const int32_t busiest = a_.busiest();
      if (a_.load(busiest) <= cap_) return true;
      int32_t best_a = -1, best_b = -1;
      double best = std::numeric_limits<double>::infinity();
      const std::vector<int32_t> ranks = partners();
      for (int32_t a = a_.begin(busiest); a < a_.end(busiest); ++a)
        for (int32_t rank : ranks)
          for (int32_t b = a_.begin(rank); b < a_.end(rank); ++b) {
            const double score = relief_price(busiest, a, b);
            if (score < best) best = score, best_a = a, best_b = b;
          }
      if (best_a < 0) return false;
      swap(best_a, best_b);
    }
    return false;
  }

  // Fewer visits under the cap, pass by pass, until a pass finds little.
  void descend() {
    while (pairs_left_ > 0) {
      const double before = cost();
      pass();
      if (cost() > before * 0.998) return;
    }
  }

 private:
  // Ranks that could take load: all, in large layers the lightest.
  std::vector<int32_t> partners() const {
    constexpr int32_t kLargeLayer = 2048, kLightest = 16;
    std::vector<int32_t> ranks(a_.ranks());
    std::iota(ranks.begin(), ranks.end(), 0);
    if (a_.slots() <= kLargeLayer || a_.ranks() <= kLightest) return ranks;
    std::partial_sort(ranks.begin(), ranks.begin() + kLightest, ranks.end(),
                      [&](int32_t x, int32_t y) { return a_.load(x) < a_.load(y); });
    ranks.resize(kLightest);
    return ranks;
  }

  double relief_price(int32_t busiest, int32_t a, int32_t b) const {
    const double now = a_.load(busiest), shift = a_.share(a_.expert(a)) - a_.share(a_.expert(b));
    if (shift <= 0 || a_.rank(b) == busiest) return std::numeric_limits<double>::infinity();
    const double there = a_.load(a_.rank(b)) + shift;
    const double relief = now - std::max({now - shift, there, cap_});
    if (relief <= 1e-9 * now || !a_.may_swap(a, b)) return std::numeric_limits<double>::infinity();
    return (std::max(visits_.estimate(item_[a], item_[b]), 0.0) + 1.0) / relief;
  }

  void pass() {
    for (int32_t a = 0; a < a_.slots(); ++a)
      for (int32_t b = a + 1; b < a_.slots() && --pairs_left_ > 0; ++b) {
        if (visits_.unit(item_[a]) == visits_.unit(item_[b])) continue;
        if (visits_.estimate(item_[a], item_[b]) >= -1e-9) continue;
        const double shift = a_.share(a_.expert(a)) - a_.share(a_.expert(b));
        if (a_.load(a_.rank(b)) + shift > cap_ || a_.load(a_.rank(a)) - shift > cap_ ||
            !a_.may_swap(a, b))
          continue;
        const double before = cost();
        swap(a, b);
        if (cost() >= before) swap(a, b);
      }
  }

  void swap(int32_t a, int32_t b) {
    if (visits_.unit(item_[a]) != visits_.unit(item_[b])) visits_.trade(item_[a], item_[b]);
    a_.swap(a, b);
    std::swap(item_[a], item_[b]);
  }

  Assignment& a_;
  Visits visits_;
  double cap_;
  int64_t pairs_left_;
  std::vector<int32_t> item_;  // (slots): which item is here now
};

// From each of `starts`; the best outcome that keeps the limit, or the first start if none does.
LayerPlacement plan_traffic(const LayerProblem& layer, const ExpertSets& tokens,
                            double max_imbalance, const std::vector<LayerPlacement>& starts,
                            int64_t max_pairs) {
  LayerPlacement best = starts.front();
  double best_cost = std::numeric_limits<double>::infinity();
  for (const LayerPlacement& start : starts) {
    Assignment a(layer.cluster, layer.usage.tokens);
    a.assign(start.expert_of_slot);
    TrafficSearch search(layer, tokens, a, max_imbalance * a.mean(), max_pairs);
    if (!search.repair()) continue;
    search.descend();
    if (search.cost() >= best_cost) continue;
    best_cost = search.cost();
    best.expert_of_slot = a.expert_of_slot();
  }
  return best;
}

// Every rank's load stays close to that of the best balance that is found.
LayerPlacement traffic_layer(const LayerProblem& layer, int64_t max_pairs) {
  constexpr double kBalance = 0.97;  // of the best
  const Cluster& cluster = layer.cluster;
  const LayerPlacement even = balance_from_scratch(cluster, layer.usage.tokens);
  std::vector<LayerPlacement> starts = {even};
  const double imbalance = value_of(Objective::tokens, layer, even, {});
  const int32_t groups = layer.workload.groups, nodes = cluster.nodes();
  if (groups > 1 && groups % nodes == 0 && eplb_applies(cluster, true).ok()) {
    const std::vector<float> weight(layer.usage.tokens.begin(), layer.usage.tokens.end());
    starts.push_back({-1, eplb(weight, static_cast<int32_t>(cluster.total_slots()), groups, nodes,
                               cluster.ranks())});
  }
  const double limit = std::max(imbalance, std::min(imbalance / kBalance, eplb_imbalance(layer)));
  return plan_traffic(layer, draw_tokens(layer), limit, starts, max_pairs);
}

}  // namespace
}  // namespace placement

Result<Placement> place_traffic(const PlacementProblem& problem) {
  using namespace placement;
  const auto layers = static_cast<int64_t>(problem.usage.layers.size());
  return place_each_layer(problem, [&](const LayerProblem& layer) -> Result<LayerPlacement> {
    return traffic_layer(layer, kTrafficPairs / layers);
  });
}

}  // namespace moe
