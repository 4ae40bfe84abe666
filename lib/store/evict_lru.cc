// Least recently used.
#include "store/policy_base.h"
#include "store/victim_heap.h"

namespace moe {
namespace {

class Lru final : public PolicyBase {
 public:
  explicit Lru(const EvictionOptions& options)
      : PolicyBase(options), order_(0, index().experts()) {}

  const char* name() const noexcept override { return "lru"; }

 private:
  void used(int32_t i) noexcept override { order_.update(i, last_use(i)); }
  void add(int32_t i) noexcept override { order_.insert(i, last_use(i)); }
  void remove(int32_t i) noexcept override { order_.erase(i); }
  int32_t choose(const MayGo& may_go) const noexcept override {
    const auto* node = order_.least(may_go);
    return node ? node->index : -1;
  }

  VictimHeap<uint64_t> order_;  // by last use
};

}  // namespace

Result<std::unique_ptr<EvictionPolicy>> make_lru(const EvictionOptions& options) {
  return make_policy<Lru>(options);
}

}  // namespace moe
