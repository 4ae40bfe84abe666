// Static popularity: the experts that were popular when the pool was planned stay.
#include <cmath>

#include "store/policy_base.h"
#include "store/victim_heap.h"

namespace moe {
namespace {

class Pin final : public PolicyBase {
 public:
  explicit Pin(const EvictionOptions& options)
      : PolicyBase(options), popularity_(options.popularity), order_(0, index().experts()) {
    popularity_.resize(static_cast<size_t>(index().experts()));
  }

  const char* name() const noexcept override { return "pin"; }

 private:
  using Key = std::pair<double, uint64_t>;  // popularity, last use

  Key key(int32_t i) const { return {popularity_[static_cast<size_t>(i)], last_use(i)}; }

  void used(int32_t i) noexcept override { order_.update(i, key(i)); }
  void add(int32_t i) noexcept override { order_.insert(i, key(i)); }
  void remove(int32_t i) noexcept override { order_.erase(i); }
  int32_t choose(const MayGo& may_go) const noexcept override {
    const auto* node = order_.least(may_go);
    return node ? node->index : -1;
  }

  std::vector<double> popularity_;  // (experts)
  VictimHeap<Key> order_;
};

Status check_popularity(const EvictionOptions& options) {
  if (options.popularity.empty()) return {};
  size_t experts = 0;
  for (const LayerExperts& layer : options.layers) experts += static_cast<size_t>(layer.experts);
  if (options.popularity.size() != experts)
    return invalid_argument({}, "popularity has {} values; the layers have {} experts",
                            options.popularity.size(), experts);
  for (size_t i = 0; i < experts; ++i) {
    if (std::isnan(options.popularity[i]))
      return invalid_argument({}, "popularity[{}] is not a number", i);
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<EvictionPolicy>> make_pin(const EvictionOptions& options) {
  MOE_RETURN_IF_ERROR(validate(std::span(options.layers)));
  MOE_RETURN_IF_ERROR(check_popularity(options));
  return make_policy<Pin>(options);
}

}  // namespace moe
