// Least frequently used. Counts survive eviction, so an expert that comes back is not a stranger.
#include "store/policy_base.h"
#include "store/victim_heap.h"

namespace moe {
namespace {

class Lfu final : public PolicyBase {
 public:
  explicit Lfu(const EvictionOptions& options)
      : PolicyBase(options),
        uses_(static_cast<size_t>(index().experts())),
        order_(0, index().experts()) {
    keep("uses", &uses_);
  }

  const char* name() const noexcept override { return "lfu"; }

 private:
  using Key = std::pair<uint64_t, uint64_t>;  // uses, last use

  Key key(int32_t i) const { return {uses_[static_cast<size_t>(i)], last_use(i)}; }

  void used(int32_t i) noexcept override {
    ++uses_[static_cast<size_t>(i)];
    order_.update(i, key(i));
  }
  void add(int32_t i) noexcept override { order_.insert(i, key(i)); }
  void remove(int32_t i) noexcept override { order_.erase(i); }
  int32_t choose(const MayGo& may_go) const noexcept override {
    const auto* node = order_.least(may_go);
    return node ? node->index : -1;
  }

  std::vector<uint64_t> uses_;  // (experts)
  VictimHeap<Key> order_;
};

}  // namespace

Result<std::unique_ptr<EvictionPolicy>> make_lfu(const EvictionOptions& options) {
  return make_policy<Lfu>(options);
}

}  // namespace moe
