// Layer-aware LRU. Plain LRU ranks "the next layer, one token ago" as older than "the layer before,
// this token", although the next layer comes next; counted in rounds both are equal, and the one
// whose turn comes last goes.
//
// With t the layers visited so far and d the layers until q's next turn, an expert of layer q has
// age (t + d - last_use) / L. That is the number of q's turns since, counted here: so ages stay
// right when layers are skipped or sequences interleave.
#include "store/policy_base.h"
#include "store/victim_heap.h"

namespace moe {
namespace {

class Llru final : public PolicyBase {
 public:
  explicit Llru(const EvictionOptions& options)
      : PolicyBase(options),
        turns_(static_cast<size_t>(index().layers())),
        last_turn_(static_cast<size_t>(index().experts())) {
    keep("turns", &turns_);
    keep("last_turn", &last_turn_);
    for (int32_t p = 0; p < index().layers(); ++p)
      order_.emplace_back(index().first(p), index().experts(p));
  }

  const char* name() const noexcept override { return "llru"; }

 private:
  uint64_t& turns(int32_t i) { return turns_[static_cast<size_t>(index().position_of(i))]; }
  uint64_t& last_turn(int32_t i) { return last_turn_[static_cast<size_t>(i)]; }
  VictimHeap<uint64_t>& order(int32_t i) {
    return order_[static_cast<size_t>(index().position_of(i))];
  }

  void visited(int32_t position, const ExpertAccess&) noexcept override {
    ++turns_[static_cast<size_t>(position)];
  }
  void used(int32_t i) noexcept override {
    last_turn(i) = turns(i);
    order(i).update(i, turns(i));
  }
  void arrived(int32_t i) noexcept override { last_turn(i) = turns(i); }
  void add(int32_t i) noexcept override { order(i).insert(i, last_turn(i)); }
  void remove(int32_t i) noexcept override { order(i).erase(i); }

  int32_t choose(const MayGo& may_go) const noexcept override {
    int32_t oldest = -1;
    std::pair<uint64_t, int32_t> most{0, 0};  // age, distance
    for (int32_t p = 0; p < index().layers(); ++p) {
      const auto* node = order_[static_cast<size_t>(p)].least(may_go);
      if (!node) continue;
      const std::pair age{turns_[static_cast<size_t>(p)] + 1 - node->key, distance(p)};
      if (age > most) most = age, oldest = node->index;
    }
    return oldest;
  }

  std::vector<uint64_t> turns_;              // (layers)
  std::vector<uint64_t> last_turn_;          // (experts): when it was used last, or brought in
  std::vector<VictimHeap<uint64_t>> order_;  // per layer, by the turn of the last use
};

}  // namespace

Result<std::unique_ptr<EvictionPolicy>> make_llru(const EvictionOptions& options) {
  return make_policy<Llru>(options);
}

}  // namespace moe
