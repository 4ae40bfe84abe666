#include "placement/subset.h"

#include "placement/balanced.h"
#include "placement/evaluate.h"
#include "placement/random.h"
#include "placement/sample.h"

namespace moe {
namespace placement {
namespace {

constexpr double kBetter = 1e-9;  // relative

bool may_swap(const SetPlan& plan, int32_t a, int32_t b) {
  const int32_t e = plan.expert_of_slot()[a], f = plan.expert_of_slot()[b];
  return e != f && plan.rank(a) != plan.rank(b) && (e < 0 || !plan.holds(plan.rank(b), e)) &&
         (f < 0 || !plan.holds(plan.rank(a), f));
}

void exchange(SetPlan& plan, int32_t a, int32_t b) {
  const int32_t e = plan.expert_of_slot()[a], f = plan.expert_of_slot()[b];
  plan.put(a, -1);
  plan.put(b, e);
  plan.put(a, f);
}

// First improvement over all pairs of slots, then over all replacements. False if nothing helps.
class LocalSearch {
 public:
  LocalSearch(SetPlan& plan, int64_t limit) : plan_(plan), limit_(limit) {}

  void run() {
    while (plan_.work() < limit_ && (swap_pass() || replace_pass())) {
    }
  }

 private:
  int32_t slots() const { return static_cast<int32_t>(plan_.expert_of_slot().size()); }
  int32_t expert(int32_t slot) const { return plan_.expert_of_slot()[slot]; }
  bool better(double cost) const { return cost < plan_.cost() * (1 - kBetter); }

  bool swap_pass() {
    bool improved = false;
    for (int32_t a = 0; a < slots(); ++a)
      for (int32_t b = a + 1; b < slots() && plan_.work() < limit_; ++b) {
        if (!may_swap(plan_, a, b) || !better(plan_.cost_with(a, expert(b), b, expert(a))))
          continue;
        exchange(plan_, a, b);
        improved = true;
      }
    return improved;
  }

  // Over a copy that can be spared, a copy of another expert.
  bool replace_pass() {
    bool improved = false;
    const auto experts = static_cast<int32_t>(plan_.holders().size());
    for (int32_t a = 0; a < slots(); ++a)
      for (int32_t f = 0; f < experts && plan_.work() < limit_; ++f) {
        if (expert(a) >= 0 && plan_.copies(expert(a)) == 1) break;
        if (plan_.holds(plan_.rank(a), f) || !better(plan_.cost_with(a, f))) continue;
        plan_.put(a, f);
        improved = true;
      }
    return improved;
  }

  SetPlan& plan_;
  int64_t limit_;
};

// A few random swaps and replacements: far enough to leave a local optimum, near enough to keep
// most of it.
void shake(SetPlan& plan, Random& random) {
  const auto slots = static_cast<int64_t>(plan.expert_of_slot().size());
  const auto experts = static_cast<int64_t>(plan.holders().size());
  for (int changes = 0, tries = 0; changes < 3 && tries < 100; ++tries) {
    const auto a = static_cast<int32_t>(random.below(slots));
    const auto b = static_cast<int32_t>(random.below(slots));
    const auto f = static_cast<int32_t>(random.below(experts));
    const int32_t e = plan.expert_of_slot()[a];
    if ((e < 0 || plan.copies(e) > 1) && !plan.holds(plan.rank(a), f)) {
      plan.put(a, f);
    } else if (may_swap(plan, a, b)) {
      exchange(plan, a, b);
    } else {
      continue;
    }
    ++changes;
  }
}

// What the greedy would look at.
double greedy_work(const SetPlan& plan) {
  double work = 0;
  for (int64_t i = 0; i < plan.sets().size(); ++i) {
    const auto size = static_cast<double>(plan.sets()[i].size());
    work += size * size * size;
  }
  return 2 * work * plan.ranks() * static_cast<double>(plan.expert_of_slot().size()) /
         static_cast<double>(plan.holders().size());
}

// How often each expert is active.
std::vector<double> activity(const ExpertSets& sets, int32_t experts) {
  std::vector<double> weight(experts, 0.0);
  for (int64_t i = 0; i < sets.size(); ++i)
    for (int32_t e : sets[i]) weight[e] += sets.counts[i];
  return weight;
}

}  // namespace

void improve(SetPlan& plan, int64_t work) {
  const int64_t limit = plan.work() + work;
  LocalSearch search(plan, limit);
  search.run();
  std::vector<int32_t> best = plan.expert_of_slot();
  double best_cost = plan.cost();
  Random random(1);
  for (int round = 0; round < 40 && plan.work() < limit; ++round) {
    shake(plan, random);
    search.run();
    if (plan.cost() < best_cost * (1 - kBetter)) {
      best = plan.expert_of_slot();
      best_cost = plan.cost();
      round = 0;
    } else {
      plan.assign(best);
    }
  }
  plan.assign(best);
}

LayerPlacement plan_subsets(const LayerProblem& layer, const ExpertSets& sets, int64_t work) {
  const LayerPlacement even = balance_from_scratch(layer.cluster, activity(sets, layer.experts()));
  if (layer.cluster.ranks() > kMaskRanks) return even;
  SetPlan plan(layer.cluster, sets, layer.experts());
  plan.assign(even.expert_of_slot);
  const double even_cost = plan.cost();
  if (greedy_work(plan) <= static_cast<double>(work)) {
    place_greedily(plan);
    if (plan.cost() > even_cost) plan.assign(even.expert_of_slot);
  }
  improve(plan, work);
  return {-1, plan.expert_of_slot()};
}

}  // namespace placement

Result<Placement> place_subset(const PlacementProblem& problem) {
  const auto layers = static_cast<int64_t>(problem.usage.layers.size());
  return placement::place_each_layer(
      problem, [&](const placement::LayerProblem& layer) -> Result<LayerPlacement> {
        return placement::plan_subsets(layer, placement::draw_steps(layer),
                                       placement::kSubsetWork / layers);
      });
}

Result<double> expected_set_time(const LayerUsage& usage, const Cluster& cluster,
                                 const LayerPlacement& placement) {
  return guarded({.layer = usage.layer, .phase = Phase::plan}, [&]() -> Result<double> {
    const UsageTrace trace{0, {usage}};
    MOE_RETURN_IF_ERROR(validate(trace));
    MOE_RETURN_IF_ERROR(validate(cluster));
    MOE_RETURN_IF_ERROR(validate(Placement{{placement}}, cluster, trace, true));
    return placement::mean_active({usage, cluster, {}}, placement, usage.sets);
  });
}

}  // namespace moe
