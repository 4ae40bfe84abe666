// Collects tokens one by one into a UsageTrace: what the readers of per-token files share.
#pragma once

#include <algorithm>
#include <map>
#include <vector>

#include "core/error.h"
#include "moe/usage.h"

namespace moe::placement {

class UsageBuilder {
 public:
  static constexpr int32_t kMaxLayer = 1 << 16, kMaxExpert = 1 << 16;

  // How many experts the layer has, where a file says it.
  Status set_experts(int64_t layer, int32_t experts) {
    if (layer < 0 || layer >= kMaxLayer || experts < 1 || experts > kMaxExpert)
      return invalid_argument({}, "layer {} with {} experts: out of range", layer, experts);
    layers_[static_cast<int32_t>(layer)].experts = experts;
    return {};
  }

  // `ids` in any order; none is no set.
  Status add_token(int64_t layer, std::vector<int32_t> ids) {
    std::sort(ids.begin(), ids.end());
    if (std::adjacent_find(ids.begin(), ids.end()) != ids.end())
      return invalid_argument({.layer = static_cast<int32_t>(layer)},
                              "a token names expert {} twice",
                              *std::adjacent_find(ids.begin(), ids.end()));
    for (int32_t id : ids) MOE_RETURN_IF_ERROR(add_count(layer, id, 1));
    if (ids.empty()) return {};
    top_k_ = std::max(top_k_, static_cast<int32_t>(ids.size()));
    layers_[static_cast<int32_t>(layer)].sets[std::move(ids)] += 1;
    return {};
  }

  // `count` tokens chose exactly `ids` (ascending).
  Status add_set(int64_t layer, const std::vector<int32_t>& ids, double count) {
    for (int32_t id : ids) MOE_RETURN_IF_ERROR(add_count(layer, id, count));
    top_k_ = std::max(top_k_, static_cast<int32_t>(ids.size()));
    layers_[static_cast<int32_t>(layer)].sets[ids] += count;
    return {};
  }

  Status add_count(int64_t layer, int64_t expert, double count) {
    if (layer < 0 || layer >= kMaxLayer || expert < 0 || expert >= kMaxExpert || !(count >= 0))
      return invalid_argument({}, "layer {}, expert {}, count {}: out of range", layer, expert,
                              count);
    std::vector<double>& tokens = layers_[static_cast<int32_t>(layer)].tokens;
    if (tokens.size() <= static_cast<size_t>(expert)) tokens.resize(expert + 1, 0.0);
    tokens[expert] += count;
    return {};
  }

  Result<UsageTrace> finish(const UsageFileOptions& options) {
    int32_t experts = options.experts;
    for (const auto& [index, layer] : layers_) {
      const auto seen = static_cast<int32_t>(layer.tokens.size());
      const int32_t known = layer.experts > 0 ? layer.experts : options.experts;
      if (known > 0 && seen > known)
        return invalid_argument({.layer = index}, "the file names expert {}, but the layer has {}",
                                seen - 1, known);
      experts = std::max(experts, seen);
    }
    UsageTrace trace{top_k_, {}};
    for (auto& [index, layer] : layers_) {
      LayerUsage usage{index, std::move(layer.tokens), {}, {}};
      usage.tokens.resize(layer.experts > 0 ? layer.experts : experts, 0.0);
      ExpertSets sets;
      for (const auto& [ids, count] : layer.sets) sets.add(ids, count);
      usage.sets = options.coverage < 1 ? prune(sets, options.coverage) : std::move(sets);
      trace.layers.push_back(std::move(usage));
    }
    return trace;
  }

 private:
  struct Layer {
    int32_t experts = 0;  // 0: the file does not say
    std::vector<double> tokens;
    std::map<std::vector<int32_t>, double> sets;
  };
  std::map<int32_t, Layer> layers_;
  int32_t top_k_ = 0;
};

// The formats. `text` begins after white space.
Result<UsageTrace> parse_usage_csv(std::string_view text, const UsageFileOptions& options);
Result<UsageTrace> parse_usage_json(std::string_view text, const UsageFileOptions& options);
Result<UsageTrace> parse_usage_lines(std::string_view text, const UsageFileOptions& options);

}  // namespace moe::placement
