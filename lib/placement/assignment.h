// A placement of one layer while it is being made: who holds what, and the load that follows when
// copies share evenly.
#pragma once

#include <algorithm>
#include <vector>

#include "placement/layer.h"

namespace moe::placement {

class Assignment {
 public:
  // All slots empty. `weight` is (experts).
  Assignment(const Cluster& cluster, std::vector<double> weight)
      : ranks_(cluster.ranks()),
        weight_(std::move(weight)),
        rank_(cluster.rank_of_slot()),
        first_(ranks_ + 1, 0),
        expert_(rank_.size(), -1),
        copies_(weight_.size(), 0),
        holds_(weight_.size() * ranks_, 0),
        holders_(weight_.size()),
        load_(ranks_, 0.0) {
    for (int32_t r = 0; r < ranks_; ++r) first_[r + 1] = first_[r] + cluster.slots[r];
  }

  int32_t ranks() const { return ranks_; }
  int32_t experts() const { return static_cast<int32_t>(weight_.size()); }
  int32_t slots() const { return static_cast<int32_t>(rank_.size()); }
  int32_t rank(int32_t slot) const { return rank_[slot]; }
  int32_t begin(int32_t rank) const { return first_[rank]; }  // its slots: [begin, end)
  int32_t end(int32_t rank) const { return first_[rank + 1]; }
  int32_t expert(int32_t slot) const { return expert_[slot]; }  // -1: empty
  int32_t copies(int32_t expert) const { return copies_[expert]; }
  bool holds(int32_t rank, int32_t expert) const {
    return holds_[static_cast<size_t>(expert) * ranks_ + rank] != 0;
  }
  const std::vector<int32_t>& holders(int32_t expert) const { return holders_[expert]; }  // ranks
  double weight(int32_t expert) const { return weight_[expert]; }
  double share(int32_t expert) const { return expert < 0 ? 0 : weight_[expert] / copies_[expert]; }
  double load(int32_t rank) const { return load_[rank]; }
  const std::vector<double>& loads() const { return load_; }
  int32_t busiest() const {
    return static_cast<int32_t>(std::max_element(load_.begin(), load_.end()) - load_.begin());
  }
  double mean() const {
    double sum = 0;
    for (double w : weight_) sum += w;
    return sum / ranks_;
  }

  // Puts `expert` (-1: nothing) into `slot` in place of what is there.
  void put(int32_t slot, int32_t expert) {
    if (const int32_t old = expert_[slot]; old >= 0) {
      add_share(old, -1);
      mark(slot, old, false);
      --copies_[old];
      add_share(old, +1);
    }
    expert_[slot] = expert;
    if (expert < 0) return;
    add_share(expert, -1);
    mark(slot, expert, true);
    ++copies_[expert];
    add_share(expert, +1);
  }

  // Exchanges two slots; copy counts stay, so this is cheap.
  void swap(int32_t a, int32_t b) {
    const int32_t e = expert_[a], f = expert_[b];
    const double difference = share(f) - share(e);
    load_[rank_[a]] += difference;
    load_[rank_[b]] -= difference;
    if (e >= 0) mark(a, e, false), mark(b, e, true);
    if (f >= 0) mark(b, f, false), mark(a, f, true);
    expert_[a] = f;
    expert_[b] = e;
  }

  // Neither rank would hold an expert twice.
  bool may_swap(int32_t a, int32_t b) const {
    const int32_t e = expert_[a], f = expert_[b];
    return (e < 0 || !holds(rank_[b], e)) && (f < 0 || !holds(rank_[a], f));
  }

  void assign(const std::vector<int32_t>& expert_of_slot) {
    for (int32_t s = 0; s < slots(); ++s) put(s, -1);
    for (int32_t s = 0; s < slots(); ++s)
      if (const int32_t e = expert_of_slot[s]; e >= 0 && !holds(rank_[s], e)) put(s, e);
  }
  const std::vector<int32_t>& expert_of_slot() const { return expert_; }

 private:
  void mark(int32_t slot, int32_t expert, bool held) {
    holds_[static_cast<size_t>(expert) * ranks_ + rank_[slot]] = held;
    if (held)
      holders_[expert].push_back(rank_[slot]);
    else
      std::erase(holders_[expert], rank_[slot]);
  }
  void add_share(int32_t expert, double sign) {
    if (copies_[expert] == 0) return;
    for (int32_t rank : holders_[expert]) load_[rank] += sign * share(expert);
  }

  int32_t ranks_;
  std::vector<double> weight_;                 // (experts)
  std::vector<int32_t> rank_;                  // (slots)
  std::vector<int32_t> first_;                 // (ranks + 1)
  std::vector<int32_t> expert_;                // (slots)
  std::vector<int32_t> copies_;                // (experts)
  std::vector<uint8_t> holds_;                 // (experts, ranks)
  std::vector<std::vector<int32_t>> holders_;  // (experts): the same as lists
  std::vector<double> load_;                   // (ranks)
};

// Fills every slot: the most useful replicas, then heaviest first to the lightest rank.
void pack_greedily(Assignment& assignment);

// Swaps slots and changes replicas until the busiest rank's load is at most `target` times the
// mean, or nothing helps. `frugal` weighs every kind of change by the copies it moves; otherwise
// swaps go first, which is faster.
void relieve_busiest(Assignment& assignment, double target, bool frugal);

}  // namespace moe::placement
