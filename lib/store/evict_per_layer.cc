// A fixed share of the slots for every layer. No layer can push another one out, and none can use
// what another one does not need.
#include <algorithm>

#include "store/policy_base.h"

namespace moe {
namespace {

class PerLayer final : public EvictionPolicy {
 public:
  PerLayer(const char* name, const EvictionOptions& options,
           std::vector<std::unique_ptr<EvictionPolicy>> policies)
      : name_(name), index_(options.layers), policies_(std::move(policies)) {
    held_.resize(policies_.size());
    fullest_.resize(policies_.size());
  }

  const char* name() const noexcept override { return name_; }

  void accessed(const ExpertAccess& access) noexcept override {
    if (EvictionPolicy* own = policy(access.layer)) own->accessed(access);
  }
  void inserted(ExpertId id) noexcept override { change(id, 1, &EvictionPolicy::inserted); }
  void evicted(ExpertId id) noexcept override { change(id, -1, &EvictionPolicy::evicted); }
  void sequence_ended() noexcept override {
    for (auto& each : policies_) each->sequence_ended();
  }

  // Each layer's arrays, called {layer}/{name}.
  PolicyMemory memory() const override {
    PolicyMemory all;
    for (size_t p = 0; p < policies_.size(); ++p)
      for (auto& part : policies_[p]->memory().parts)
        all.parts.push_back({fmt::format("{}/{}", layer_at(p), part.name), std::move(part.values)});
    return all;
  }

  Status restore(const PolicyMemory& memory) override {
    std::vector<PolicyMemory> next(policies_.size()), before;
    for (const PolicyMemory::Part& part : memory.parts) {
      size_t p = 0;
      while (p < next.size() && !part.name.starts_with(fmt::format("{}/", layer_at(p)))) ++p;
      if (p == next.size())
        return invalid_argument({}, "no layer of '{}' keeps an array '{}'", name_, part.name);
      next[p].parts.push_back({part.name.substr(part.name.find('/') + 1), part.values});
    }
    for (const auto& policy : policies_) before.push_back(policy->memory());
    for (size_t p = 0; p < policies_.size(); ++p) {
      Status status = policies_[p]->restore(next[p]);
      if (status.ok()) continue;
      while (p-- > 0) (void)policies_[p]->restore(before[p]);
      return status;
    }
    return {};
  }

  int64_t limit(int32_t layer, int64_t slots) const noexcept override {
    const int32_t position = index_.position(layer);
    if (position < 0) return 0;
    return slots / index_.layers() + (position < slots % index_.layers());
  }

  // Its own layer first. The others only if that has none, as when the pool shrinks or has fewer
  // slots than layers: then the one that holds most.
  ExpertId victim(ExpertId incoming, const EvictionCandidates& candidates) noexcept override {
    ExpertId chosen;
    if (EvictionPolicy* own = policy(incoming.layer)) chosen = own->victim(incoming, candidates);
    if (chosen.expert >= 0) return chosen;
    for (size_t p = 0; p < fullest_.size(); ++p) fullest_[p] = p;
    std::sort(fullest_.begin(), fullest_.end(), [this](size_t a, size_t b) {
      return held_[a] > held_[b] || (held_[a] == held_[b] && a < b);
    });
    for (const size_t p : fullest_) {
      chosen = policies_[p]->victim(incoming, candidates);
      if (chosen.expert >= 0) break;
    }
    return chosen;
  }

 private:
  int32_t layer_at(size_t position) const {
    return index_.id(index_.first(static_cast<int32_t>(position))).layer;
  }
  EvictionPolicy* policy(int32_t layer) const {
    const int32_t position = index_.position(layer);
    return position < 0 ? nullptr : policies_[static_cast<size_t>(position)].get();
  }

  void change(ExpertId id, int64_t by, void (EvictionPolicy::*tell)(ExpertId) noexcept) {
    if (index_.find(id) < 0) return;
    held_[static_cast<size_t>(index_.position(id.layer))] += by;
    (policy(id.layer)->*tell)(id);
  }

  const char* name_;
  ExpertIndex index_;
  std::vector<std::unique_ptr<EvictionPolicy>> policies_;  // (layers)
  std::vector<int64_t> held_;                              // (layers): slots
  std::vector<size_t> fullest_;                            // scratch
};

// The options of the one layer whose experts begin at `first`.
EvictionOptions only(const EvictionOptions& options, const LayerExperts& layer, size_t first) {
  EvictionOptions one = options;
  one.layers = {layer};
  if (!options.popularity.empty()) {
    const auto begin = options.popularity.begin() + static_cast<ptrdiff_t>(first);
    one.popularity.assign(begin, begin + layer.experts);
  }
  return one;
}

}  // namespace

Result<std::unique_ptr<EvictionPolicy>> make_per_layer(
    const char* name, const EvictionOptions& options,
    const std::function<Result<std::unique_ptr<EvictionPolicy>>(const EvictionOptions&)>& make) {
  return guarded({}, [&]() -> Result<std::unique_ptr<EvictionPolicy>> {
    MOE_RETURN_IF_ERROR(validate(std::span(options.layers)));
    std::vector<std::unique_ptr<EvictionPolicy>> policies;
    size_t first = 0;
    for (const LayerExperts& layer : options.layers) {
      MOE_ASSIGN_OR_RETURN(auto policy, make(only(options, layer, first)));
      policies.push_back(std::move(policy));
      first += static_cast<size_t>(layer.experts);
    }
    return std::unique_ptr<EvictionPolicy>(
        std::make_unique<PerLayer>(name, options, std::move(policies)));
  });
}

Result<std::unique_ptr<EvictionPolicy>> make_lru_per_layer(const EvictionOptions& options) {
  return make_per_layer("lru-per-layer", options, make_lru);
}

Result<std::unique_ptr<EvictionPolicy>> make_lfu_per_layer(const EvictionOptions& options) {
  return make_per_layer("lfu-per-layer", options, make_lfu);
}

}  // namespace moe
