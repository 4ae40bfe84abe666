// The exact answer to LPLB's linear program: parametric max-flow. The smallest M for which all
// tokens fit is found by discrete Newton steps: each min cut names experts whose ranks are too few,
// and their average is the next M.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "moe/replica_choice.h"

namespace moe {
namespace {

class Flow {
 public:
  Flow(const ReplicaTable& table, std::span<const double> counts)
      : table_(table),
        supply_(counts.begin(), counts.end()),
        load_(table.ranks, 0.0),
        tokens_(table.slot.size(), 0.0),
        owner_(table.slot.size()),
        on_rank_(table.ranks) {
    for (int32_t e = 0; e < table.experts(); ++e)
      for (int32_t copy = table.first[e]; copy < table.first[e + 1]; ++copy) {
        owner_[copy] = e;
        on_rank_[table.rank[copy]].push_back(copy);
      }
    total_ = std::accumulate(counts.begin(), counts.end(), 0.0);
    epsilon_ = 1e-13 * total_;
  }

  LoadSplit run() {
    double limit = total_ / table_.ranks;
    while (!fits(limit)) limit = std::max(cut_average(), std::nextafter(limit, INFINITY));
    return {*std::max_element(load_.begin(), load_.end()), tokens_};
  }

 private:
  // Pushes what supply is left into ranks below `limit`. False leaves the cut in seen_.
  bool fits(double limit) {
    for (int32_t e = 0; e < table_.experts(); ++e)
      while (supply_[e] > epsilon_)
        if (!augment(e, limit)) return false;
    return true;
  }

  // One shortest path from expert `source` to a rank with room; experts and ranks alternate.
  bool augment(int32_t source, double limit) {
    seen_expert_.assign(table_.experts(), 0);
    via_.assign(table_.ranks, -1);
    came_.assign(table_.experts(), -1);
    queue_.assign(1, source);
    seen_expert_[source] = 1;
    for (size_t head = 0; head < queue_.size(); ++head) {
      const int32_t e = queue_[head];
      for (int32_t copy = table_.first[e]; copy < table_.first[e + 1]; ++copy) {
        const int32_t rank = table_.rank[copy];
        if (via_[rank] >= 0) continue;
        via_[rank] = copy;
        if (limit - load_[rank] > epsilon_) {
          push(source, rank, limit - load_[rank]);
          return true;
        }
        for (int32_t other : on_rank_[rank]) {
          if (tokens_[other] <= 0 || seen_expert_[owner_[other]]) continue;
          seen_expert_[owner_[other]] = 1;
          came_[owner_[other]] = other;  // reached by taking tokens away from this copy
          queue_.push_back(owner_[other]);
        }
      }
    }
    return false;
  }

  void push(int32_t source, int32_t rank, double room) {
    double amount = std::min(room, supply_[source]);
    for (int32_t e = owner_[via_[rank]]; e != source; e = owner_[via_[table_.rank[came_[e]]]])
      amount = std::min(amount, tokens_[came_[e]]);
    supply_[source] -= amount;
    load_[rank] += amount;
    while (true) {
      tokens_[via_[rank]] += amount;
      const int32_t e = owner_[via_[rank]];
      if (e == source) return;
      tokens_[came_[e]] -= amount;
      rank = table_.rank[came_[e]];
    }
  }

  // Load that only the ranks of the cut can take, per rank.
  double cut_average() const {
    double load = 0;
    int32_t ranks = 0;
    for (int32_t r = 0; r < table_.ranks; ++r)
      if (via_[r] >= 0) load += load_[r], ++ranks;
    for (int32_t e = 0; e < table_.experts(); ++e)
      if (seen_expert_[e]) load += supply_[e];
    return load / ranks;
  }

  const ReplicaTable& table_;
  std::vector<double> supply_, load_, tokens_;
  std::vector<int32_t> owner_;  // (copies): the expert
  std::vector<std::vector<int32_t>> on_rank_;
  std::vector<uint8_t> seen_expert_;
  std::vector<int32_t> via_, came_, queue_;
  double total_ = 0, epsilon_ = 0;
};

}  // namespace

Result<LoadSplit> split_load(const ReplicaTable& table, std::span<const double> counts) {
  return guarded({.phase = Phase::dispatch}, [&]() -> Result<LoadSplit> {
    if (counts.size() != static_cast<size_t>(table.experts()))
      return invalid_argument({}, "{} counts for {} experts", counts.size(), table.experts());
    for (int32_t e = 0; e < table.experts(); ++e)
      if (!(counts[e] >= 0) || !std::isfinite(counts[e]) ||
          (counts[e] > 0 && table.first[e] == table.first[e + 1]))
        return invalid_argument({.expert = e}, "{} tokens on {} copies", counts[e],
                                table.first[e + 1] - table.first[e]);
    if (table.ranks < 1) return invalid_argument({}, "the table has no ranks");
    return Flow(table, counts).run();
  });
}

}  // namespace moe
