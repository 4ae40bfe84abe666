// Tokens drawn from what is known of a layer's usage: its sets if it has any, else its counts.
#pragma once

#include "placement/layer.h"

namespace moe::placement {

inline constexpr int64_t kSampledTokens = 1024;  // per layer: enough to count rows

// `count` tokens' experts, each set with count 1. Equal for equal usage, whatever the placement.
// From counts, a token draws groups by their load without replacement, then top_k experts of these
// by theirs.
ExpertSets draw_tokens(const LayerProblem& layer, int64_t count = kSampledTokens);

// What steps of workload.tokens_per_step tokens activate: unions of drawn tokens. One token a step
// of known sets: the sets themselves. Very many tokens: one set, of all experts that have tokens.
ExpertSets draw_steps(const LayerProblem& layer);

}  // namespace moe::placement
