// The table of eviction policies.
#include "moe/eviction.h"

#include <string>

#include "core/error.h"
#include "store/expert_index.h"

namespace moe {
namespace {

constexpr int32_t kMostLayers = 1 << 16;
constexpr int32_t kMostExperts = 1 << 24;  // of all layers

constexpr EvictionPolicyRow kRows[] = {
    {"lru", "least recently used", make_lru},
    {"lru-per-layer", "an equal share of the slots and an LRU for every layer", make_lru_per_layer},
    {"lfu", "least frequently used; counts survive eviction", make_lfu},
    {"lfu-per-layer", "an equal share of the slots and an LFU for every layer", make_lfu_per_layer},
    {"llru", "layer-aware LRU: most rounds unused, then the layer whose turn is last", make_llru},
    {"hybrimoe", "lowest moving average of the router's probabilities", make_hybrimoe},
    {"moe-infinity", "lowest use by this sequence and by all, near layers first",
     make_moe_infinity},
    {"pin", "least popular by counts given beforehand", make_pin},
};

}  // namespace

EvictionPolicy::~EvictionPolicy() = default;
int64_t EvictionPolicy::limit(int32_t, int64_t slots) const noexcept { return slots; }
void EvictionPolicy::sequence_ended() noexcept {}
PolicyMemory EvictionPolicy::memory() const { return {}; }
Status EvictionPolicy::restore(const PolicyMemory& memory) {
  if (memory.parts.empty()) return {};
  return invalid_argument({}, "eviction policy '{}' has no memory, but {} arrays were given",
                          name(), memory.parts.size());
}

Status validate(std::span<const LayerExperts> layers) {
  if (layers.empty()) return invalid_argument({}, "an eviction policy needs at least one layer");
  int32_t previous = -1;
  int64_t experts = 0;
  for (const LayerExperts& layer : layers) {
    if (layer.layer <= previous || layer.layer >= kMostLayers)
      return invalid_argument({}, "layer {} follows layer {}; wanted ascending, below {}",
                              layer.layer, previous, kMostLayers);
    if (layer.experts < 1)
      return invalid_argument({.layer = layer.layer}, "the layer has {} experts; wanted 1 or more",
                              layer.experts);
    previous = layer.layer;
    experts += layer.experts;
  }
  if (experts > kMostExperts)
    return invalid_argument({}, "{} experts in all layers; wanted at most {}", experts,
                            kMostExperts);
  return {};
}

std::span<const EvictionPolicyRow> eviction_policy_rows() { return kRows; }

Result<std::unique_ptr<EvictionPolicy>> make_eviction_policy(std::string_view name,
                                                             const EvictionOptions& options) {
  return guarded({}, [&]() -> Result<std::unique_ptr<EvictionPolicy>> {
    std::string known;
    for (const EvictionPolicyRow& row : kRows) {
      if (name.empty() || name == row.name) return row.make(options);
      known += known.empty() ? "" : ", ";
      known += row.name;
    }
    return error(StatusCode::not_found, {}, "no eviction policy is called '{}'; there are: {}",
                 name, known);
  });
}

}  // namespace moe
