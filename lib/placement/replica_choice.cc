#include "moe/replica_choice.h"

#include <algorithm>

#include "core/error.h"
#include "placement/match.h"
#include "placement/nearest.h"

namespace moe {
namespace {

Status validate_batch(const ReplicaTable& table, const ReplicaBatch& batch,
                      std::span<const int32_t> slots) {
  if (batch.top_k < 1 || batch.ids.size() % batch.top_k != 0 || slots.size() != batch.ids.size())
    return invalid_argument({}, "{} ids, top_k {}, room for {} slots", batch.ids.size(),
                            batch.top_k, slots.size());
  if (batch.source_rank < 0 || batch.source_rank >= table.ranks)
    return invalid_argument({.rank = batch.source_rank}, "source rank of {}", table.ranks);
  for (int32_t id : batch.ids)
    if (id >= 0 && id < table.experts() && table.first[id] == table.first[id + 1])
      return error(StatusCode::failed_precondition, {.expert = id}, "has no copy in the table");
  return {};
}

// One batch, pair by pair or as a whole. Ids without an expert were sorted out before.
class Chooser {
 public:
  Chooser(const ReplicaTable& table, const ReplicaBatch& batch, std::span<int32_t> slots)
      : table_(table), batch_(batch), slots_(slots) {}

  Status run(ReplicaChoice choice) {
    switch (choice) {
      case ReplicaChoice::nearest: return nearest();
      case ReplicaChoice::matching: return matching();
      case ReplicaChoice::lp_split: return lp_split();
      case ReplicaChoice::fixed: return each_pair([&](size_t pair) { return fixed(pair); });
      case ReplicaChoice::round_robin: return round_robin();
      case ReplicaChoice::position_hash:
        return each_pair([&](size_t pair) { return by_position(pair); });
      case ReplicaChoice::least_loaded: return least_loaded();
    }
    return invalid_argument({}, "unknown replica choice {}", static_cast<int>(choice));
  }

 private:
  bool valid(int32_t id) const { return id >= 0 && id < table_.experts(); }
  int32_t begin(int32_t id) const { return table_.first[id]; }
  int32_t count(int32_t id) const { return table_.first[id + 1] - table_.first[id]; }

  // `copy_of(pair)` is an index into table.slot.
  template <class CopyOf>
  Status each_pair(CopyOf copy_of) {
    for (size_t pair = 0; pair < slots_.size(); ++pair)
      slots_[pair] = valid(batch_.ids[pair]) ? table_.slot[copy_of(pair)] : -1;
    return {};
  }

  int32_t fixed(size_t pair) const {
    const int32_t id = batch_.ids[pair];
    const int32_t near = placement::near_copy(table_, id, batch_.source_rank);
    return near >= 0 ? near : begin(id) + batch_.source_rank % count(id);
  }

  int32_t by_position(size_t pair) const {
    const int64_t token = batch_.first_token + static_cast<int64_t>(pair) / batch_.top_k;
    return begin(batch_.ids[pair]) + replica_by_position(token, count(batch_.ids[pair]));
  }

  Status round_robin() {
    std::vector<int64_t> turn(table_.experts(), batch_.first_token);
    return each_pair([&](size_t pair) {
      const int32_t id = batch_.ids[pair];
      return begin(id) + static_cast<int32_t>(turn[id]++ % count(id));
    });
  }

  Status least_loaded() {
    std::vector<int64_t> load(table_.ranks, 0);
    return each_pair([&](size_t pair) {
      const int32_t id = batch_.ids[pair];
      int32_t best = begin(id);
      for (int32_t copy = best + 1; copy < begin(id) + count(id); ++copy)
        if (load[table_.rank[copy]] < load[table_.rank[best]]) best = copy;
      ++load[table_.rank[best]];
      return best;
    });
  }

  Status nearest() {
    std::vector<int32_t> ids, pairs, copies(batch_.top_k);
    std::fill(slots_.begin(), slots_.end(), -1);
    for (size_t row = 0; row < slots_.size(); row += batch_.top_k) {
      ids.clear(), pairs.clear();
      for (size_t pair = row; pair < row + batch_.top_k; ++pair)
        if (valid(batch_.ids[pair])) {
          ids.push_back(batch_.ids[pair]);
          pairs.push_back(static_cast<int32_t>(pair));
        }
      const int64_t token = batch_.first_token + static_cast<int64_t>(row) / batch_.top_k;
      placement::choose_nearest(table_, ids, batch_.source_rank, token, copies);
      for (size_t i = 0; i < ids.size(); ++i) slots_[pairs[i]] = table_.slot[copies[i]];
    }
    return {};
  }

  Status matching() {
    std::vector<int32_t> active, copy_of(table_.experts(), -1);
    for (int32_t id : batch_.ids)
      if (valid(id) && copy_of[id] < 0) copy_of[id] = 0, active.push_back(id);
    std::sort(active.begin(), active.end());
    placement::Matcher matcher(table_);
    matcher.run(active);
    for (size_t i = 0; i < active.size(); ++i) copy_of[active[i]] = matcher.copies()[i];
    return each_pair([&](size_t pair) { return copy_of[batch_.ids[pair]]; });
  }

  // Rounds the exact split: copies get whole rows, each next row to the copy furthest behind.
  Status lp_split() {
    std::vector<double> counts(table_.experts(), 0.0);
    for (int32_t id : batch_.ids)
      if (valid(id)) ++counts[id];
    MOE_ASSIGN_OR_RETURN(LoadSplit split, split_load(table_, counts));
    return each_pair([&](size_t pair) {
      const int32_t id = batch_.ids[pair];
      const auto left = split.tokens.begin() + begin(id);
      const auto copy = std::max_element(left, left + count(id)) - split.tokens.begin();
      split.tokens[copy] -= 1;
      return static_cast<int32_t>(copy);
    });
  }

  const ReplicaTable& table_;
  const ReplicaBatch& batch_;
  std::span<int32_t> slots_;
};

}  // namespace

Status choose_replicas(ReplicaChoice choice, const ReplicaTable& table, const ReplicaBatch& batch,
                       std::span<int32_t> slots) {
  return guarded({.phase = Phase::dispatch}, [&]() -> Status {
    MOE_RETURN_IF_ERROR(validate_batch(table, batch, slots));
    return Chooser(table, batch, slots).run(choice);
  });
}

}  // namespace moe
