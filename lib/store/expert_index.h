// Numbers the experts of a pool 0, 1, ... so that what is known of them lies in plain arrays.
#pragma once

#include <span>
#include <vector>

#include "moe/eviction.h"

namespace moe {

// ok if ExpertIndex can be made from `layers`.
Status validate(std::span<const LayerExperts> layers);

class ExpertIndex {
 public:
  // Needs validate(layers).
  explicit ExpertIndex(std::span<const LayerExperts> layers)
      : layers_(layers.begin(), layers.end()) {
    position_of_layer_.assign(layers_.empty() ? 0 : static_cast<size_t>(layers_.back().layer) + 1,
                              -1);
    for (const LayerExperts& layer : layers_) {
      const int32_t position = static_cast<int32_t>(first_.size()) - 1;
      position_of_layer_[static_cast<size_t>(layer.layer)] = position;
      position_.insert(position_.end(), static_cast<size_t>(layer.experts), position);
      first_.push_back(static_cast<int32_t>(position_.size()));
    }
  }

  int32_t layers() const { return static_cast<int32_t>(layers_.size()); }
  int32_t experts() const { return first_.back(); }  // of all layers
  int32_t experts(int32_t position) const { return layers_[static_cast<size_t>(position)].experts; }
  int32_t first(int32_t position) const { return first_[static_cast<size_t>(position)]; }

  // Where the layer comes in a forward, or -1.
  int32_t position(int32_t layer) const {
    const bool known = layer >= 0 && static_cast<size_t>(layer) < position_of_layer_.size();
    return known ? position_of_layer_[static_cast<size_t>(layer)] : -1;
  }
  int32_t position_of(int32_t index) const { return position_[static_cast<size_t>(index)]; }

  // The number of an expert, or -1.
  int32_t find(ExpertId id) const {
    const int32_t at = position(id.layer);
    return at >= 0 && id.expert >= 0 && id.expert < experts(at) ? first(at) + id.expert : -1;
  }
  ExpertId id(int32_t index) const {
    const int32_t at = position_of(index);
    return {layers_[static_cast<size_t>(at)].layer, index - first(at)};
  }

 private:
  std::vector<LayerExperts> layers_;
  std::vector<int32_t> position_of_layer_;
  std::vector<int32_t> first_ = {0};  // (layers + 1)
  std::vector<int32_t> position_;     // (experts)
};

}  // namespace moe
