// A block in plain bf16, in the order of the published models' own modules: one expert after the
// other, every matrix product, activation and sum rounded to bf16. What a GPU path may not be twice
// as far from the fp32 answer as.
#pragma once

#include <cmath>
#include <vector>

#include "catch.h"
#include "gemm/reference.h"
#include "quant/half.h"

namespace moe::test {

inline float bf16(double value) { return bf16_to_f32(f32_to_bf16(static_cast<float>(value))); }

// bf16(weights x + bias)
inline std::vector<float> product(const std::vector<float>& weights, const std::vector<float>& bias,
                                  const std::vector<float>& x) {
  std::vector<float> y(weights.size() / x.size());
  for (size_t i = 0; i < y.size(); ++i) {
    float sum = 0;
    for (size_t h = 0; h < x.size(); ++h) sum += bf16(weights[i * x.size() + h]) * x[h];
    y[i] = bf16(sum + (bias.empty() ? 0 : bias[i]));
  }
  return y;
}

inline std::vector<float> expert_bf16(const ReferenceExpert& expert, const std::vector<float>& x) {
  std::vector<float> gate, up = product(expert.up, expert.up_bias, x);
  if (expert.spec.gated) gate = product(expert.gate, expert.gate_bias, x);
  for (size_t i = 0; i < up.size(); ++i)
    up[i] = bf16(activate_reference(expert.spec, gate.empty() ? 0 : gate[i], up[i]));
  return product(expert.down, expert.down_bias, up);
}

// out (rows, hidden) from f32 rows that are already routed: ids and weights (rows, top_k).
inline void plain_bf16_block(const WeightSource& source, const LayerSpec& spec,
                             const std::vector<float>& hidden, const std::vector<int32_t>& ids,
                             const std::vector<float>& weights, std::vector<float>* out) {
  const size_t width = static_cast<size_t>(spec.hidden()), rows = hidden.size() / width;
  const size_t top_k = ids.size() / rows;
  const auto row = [&](size_t t, float factor) {
    std::vector<float> x(width);
    for (size_t h = 0; h < width; ++h) x[h] = bf16(bf16(hidden[t * width + h]) * factor);
    return x;
  };
  const auto add = [&](size_t t, const std::vector<float>& y, float factor) {
    for (size_t h = 0; h < width; ++h)
      (*out)[t * width + h] = bf16((*out)[t * width + h] + bf16(y[h] * factor));
  };
  const auto read = [&](const ExpertSpec& expert, int32_t index) {
    auto result = read_reference_expert(expert, source, spec.layer, index);
    REQUIRE(result.ok());
    return *std::move(result);
  };
  out->assign(hidden.size(), 0.0f);
  for (int32_t e = 0; e < spec.router.candidates(); ++e) {
    const bool zero = e >= spec.router.num_experts;
    ReferenceExpert expert;
    if (!zero) expert = read(spec.expert, e);
    for (size_t p = 0; p < ids.size(); ++p) {
      if (ids[p] != e) continue;
      const bool on_input = spec.router.weight_on_input && !zero;
      const std::vector<float> x = row(p / top_k, on_input ? weights[p] : 1);
      add(p / top_k, zero ? x : expert_bf16(expert, x), on_input ? 1 : weights[p]);
    }
  }
  if (!spec.shared) return;
  for (float& value : *out) value = bf16(value * spec.shared->routed_scale);
  const ReferenceExpert shared = read(spec.shared->expert, kSharedExpert);
  std::vector<float> gate;
  if (spec.shared->sigmoid_gate) {
    auto weight =
        read_f32(source, {spec.layer, WeightKind::shared_gate}, {1, static_cast<int64_t>(width)});
    REQUIRE(weight.ok());
    gate = *weight;
  }
  for (size_t t = 0; t < rows; ++t) {
    const std::vector<float> x = row(t, 1);
    const float factor = gate.empty() ? 1 : bf16(1 / (1 + std::exp(-product(gate, {}, x)[0])));
    add(t, expert_bf16(shared, x), spec.shared->shared_scale * factor);
  }
}

}  // namespace moe::test
