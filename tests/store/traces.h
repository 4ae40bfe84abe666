// Small traces for tests, and the recorded one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "catch.h"
#include "moe/trace.h"

namespace moe::test {

// An empty trace of layers 0, 1, ... of `experts` each.
inline RoutingTrace empty_trace(int32_t layers, int32_t experts, int32_t top_k) {
  RoutingTrace trace{.top_k = top_k};
  for (int32_t layer = 0; layer < layers; ++layer) trace.layers.push_back({layer, experts});
  return trace;
}

// Adds a forward of one row.
inline void add(RoutingTrace& trace, int32_t layer, std::vector<int32_t> experts) {
  const int64_t step = static_cast<int64_t>(trace.rows.size());
  trace.rows.push_back({.step = step, .token_pos = step, .layer = layer});
  experts.resize(static_cast<size_t>(trace.top_k), -1);
  trace.experts.insert(trace.experts.end(), experts.begin(), experts.end());
}

// 5,432 generated tokens of gpt-oss-20b: 24 layers of 32 experts, top 4.
inline std::string gptoss_path() {
  return shared_dir() + "/traces/gptoss20b/gptoss20b_top4_traces.csv.gz";
}

}  // namespace moe::test
