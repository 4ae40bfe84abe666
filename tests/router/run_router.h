// Runs a Router over rows held in vectors; outputs and workspace are poisoned first.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "moe/router.h"

namespace moe::test {

struct Routed {
  Status status;
  int32_t top_k = 0;
  std::vector<int32_t> ids;    // (tokens, top_k)
  std::vector<float> weights;  // (tokens, top_k)
  RouteCounts counts;

  friend bool same_bits(const Routed& a, const Routed& b) {
    return a.ids == b.ids && a.weights.size() == b.weights.size() &&
           std::memcmp(a.weights.data(), b.weights.data(), a.weights.size() * sizeof(float)) == 0;
  }
};

// Memory at a multiple of 64.
struct AlignedBytes {
  explicit AlignedBytes(size_t bytes) : memory(bytes / 64 + 1) {
    std::memset(memory.data(), 0xa5, memory.size() * 64);
  }
  std::span<std::byte> span(size_t bytes) {
    return {reinterpret_cast<std::byte*>(memory.data()), bytes};
  }
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  std::vector<Line> memory;
};

// `input` without workspace.
inline Routed run_router(const Router& router, RouteInput input) {
  Routed result;
  const int64_t tokens =
      input.logits.shape.rank > 0 ? input.logits.shape[0] : input.hidden.shape[0];
  result.top_k = input.top_k > 0 ? input.top_k : router.spec().top_k;
  result.ids.assign(tokens * result.top_k, -12345);
  result.weights.assign(tokens * result.top_k, std::nanf(""));
  const int concurrency = input.executor ? input.executor->concurrency() : 1;
  const size_t bytes = router.workspace_bytes(tokens, concurrency);
  AlignedBytes workspace(bytes);
  input.workspace = workspace.span(bytes);
  result.status = router.route(
      input, {tokens, result.top_k, result.ids.data(), result.weights.data()}, &result.counts);
  return result;
}

inline Routed route_logits(const Router& router, const std::vector<float>& logits,
                           int64_t candidates, RouteInput input = {}) {
  input.logits = TensorView(logits.data(), DType::f32,
                            {static_cast<int64_t>(logits.size()) / candidates, candidates});
  return run_router(router, input);
}

}  // namespace moe::test
