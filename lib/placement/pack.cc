#include <numeric>
#include <queue>

#include "placement/assignment.h"

namespace moe::placement {
namespace {

// Copies of each expert: greedy on weight per copy, at most one per rank.
std::vector<int32_t> replicate_evenly(const Assignment& a) {
  std::vector<int32_t> copies(a.experts(), 1);
  std::priority_queue<std::pair<double, int32_t>> heaviest;  // lower index first on ties
  for (int32_t e = 0; e < a.experts(); ++e) heaviest.emplace(a.weight(e), -e);
  for (int32_t spare = a.slots() - a.experts(); spare > 0 && !heaviest.empty();) {
    const int32_t e = -heaviest.top().second;
    heaviest.pop();
    if (copies[e] == a.ranks()) continue;
    ++copies[e];
    --spare;
    heaviest.emplace(a.weight(e) / copies[e], -e);
  }
  return copies;
}

// Room on a rank that lacks `expert`: by moving one of its experts to `full`'s free slot.
void make_room(Assignment& a, std::vector<int32_t>& next, int32_t expert) {
  for (int32_t full = 0; full < a.ranks(); ++full) {
    if (next[full] == a.end(full)) continue;  // `full` has a free slot but holds the expert
    for (int32_t slot = 0; slot < a.slots(); ++slot) {
      const int32_t other = a.expert(slot);
      if (other < 0 || a.holds(a.rank(slot), expert) || a.holds(full, other)) continue;
      a.put(slot, -1);
      a.put(next[full]++, other);
      a.put(slot, expert);
      return;
    }
  }
}

}  // namespace

void pack_greedily(Assignment& a) {
  const std::vector<int32_t> copies = replicate_evenly(a);
  std::vector<int32_t> items;
  for (int32_t e = 0; e < a.experts(); ++e) items.insert(items.end(), copies[e], e);
  const auto share = [&](int32_t e) { return a.weight(e) / copies[e]; };
  std::stable_sort(items.begin(), items.end(),
                   [&](int32_t e, int32_t f) { return share(e) > share(f); });

  using Entry = std::pair<double, int32_t>;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> lightest;
  std::vector<int32_t> next(a.ranks());
  for (int32_t r = 0; r < a.ranks(); ++r) {
    next[r] = a.begin(r);
    if (a.begin(r) < a.end(r)) lightest.emplace(0.0, r);
  }
  std::vector<int32_t> late;
  for (int32_t e : items) {
    std::vector<Entry> skipped;  // they hold e already
    while (!lightest.empty() && a.holds(lightest.top().second, e)) {
      skipped.push_back(lightest.top());
      lightest.pop();
    }
    if (lightest.empty()) {
      late.push_back(e);
    } else {
      const auto [load, rank] = lightest.top();
      lightest.pop();
      a.put(next[rank]++, e);
      if (next[rank] < a.end(rank)) lightest.emplace(load + share(e), rank);
    }
    for (const Entry& entry : skipped) lightest.push(entry);
  }
  for (int32_t e : late) make_room(a, next, e);
}

}  // namespace moe::placement
