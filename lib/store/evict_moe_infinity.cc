// MoE-Infinity's activation-aware score: an expert stays if its layer's turn is near, if this
// sequence uses it, and if sequences in general do.
#include "store/policy_base.h"
#include "store/victim_heap.h"

namespace moe {
namespace {

class MoeInfinity final : public PolicyBase {
 public:
  explicit MoeInfinity(const EvictionOptions& options)
      : PolicyBase(options),
        layer_uses_(static_cast<size_t>(index().layers())),
        uses_(static_cast<size_t>(index().experts())),
        uses_ever_(static_cast<size_t>(index().experts())) {
    keep("layer_uses", &layer_uses_);
    keep("uses", &uses_);
    keep("uses_ever", &uses_ever_);
    for (int32_t p = 0; p < index().layers(); ++p)
      order_.emplace_back(index().first(p), index().experts(p));
  }

  const char* name() const noexcept override { return "moe-infinity"; }

  void sequence_ended() noexcept override {
    layer_uses_.assign(layer_uses_.size(), 0);
    uses_.assign(uses_.size(), 0);
    for (auto& order : order_) order.rekey([this](int32_t i, Key& k) { k = key(i); });
  }

 private:
  // What differs within a layer, (n + 1) * f; last use.
  using Key = std::pair<uint64_t, uint64_t>;

  Key key(int32_t i) const {
    const size_t at = static_cast<size_t>(i);
    return {(uses_[at] + 1) * uses_ever_[at], last_use(i)};
  }
  VictimHeap<Key>& order(int32_t i) { return order_[static_cast<size_t>(index().position_of(i))]; }

  void used(int32_t i) noexcept override {
    ++uses_[static_cast<size_t>(i)];
    ++uses_ever_[static_cast<size_t>(i)];
    ++layer_uses_[static_cast<size_t>(index().position_of(i))];
    order(i).update(i, key(i));
  }
  void add(int32_t i) noexcept override { order(i).insert(i, key(i)); }
  void remove(int32_t i) noexcept override { order(i).erase(i); }

  int32_t choose(const MayGo& may_go) const noexcept override {
    int32_t lowest = -1;
    std::pair<double, uint64_t> least;
    for (int32_t p = 0; p < index().layers(); ++p) {
      const auto* node = order_[static_cast<size_t>(p)].least(may_go);
      if (!node) continue;
      const std::pair score{static_cast<double>(node->key.first) * layer_factor(p),
                            node->key.second};
      if (lowest < 0 || score < least) least = score, lowest = node->index;
    }
    return lowest;
  }

  double layer_factor(int32_t p) const {
    const double nearness = 1 - distance(p) / (index().layers() + 1.0);
    const double uses = static_cast<double>(layer_uses_[static_cast<size_t>(p)]);
    return nearness / (uses + index().experts(p));
  }

  std::vector<uint64_t> layer_uses_;    // (layers): N, of this sequence
  std::vector<uint64_t> uses_;          // (experts): n, of this sequence
  std::vector<uint64_t> uses_ever_;     // (experts): f
  std::vector<VictimHeap<Key>> order_;  // per layer
};

}  // namespace

Result<std::unique_ptr<EvictionPolicy>> make_moe_infinity(const EvictionOptions& options) {
  return make_policy<MoeInfinity>(options);
}

}  // namespace moe
