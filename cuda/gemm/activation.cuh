// moe::Activation on the device; fp32. g = gate, u = up.
#pragma once

#include <cstdint>

namespace moe::cuda {

__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// Comparisons that a NaN fails, so that it stays.
__device__ inline float at_most(float x, float limit) { return x > limit ? limit : x; }
__device__ inline float at_least(float x, float limit) { return x < limit ? limit : x; }

// One activation. Those with a sigmoid are one formula, without a branch:
//   min(g sigmoid(linear g + cubic g^3), most) (clamp(u, +-most_up) + offset), g at most most_gate
class Activating {
 public:
  __device__ Activating(int32_t kind, float alpha, float limit) {
    if (kind == 0) return;  // silu
    if (kind == 1 || kind == 3 || kind == 4) {
      other_ = kind;
    } else if (kind == 2) {  // gelu_tanh
      linear_ = 2 * 0.79788456f;
      cubic_ = linear_ * 0.044715f;
    } else if (kind == 5) {  // swiglu_oai
      linear_ = alpha;
      most_gate_ = most_up_ = limit;
      offset_ = 1;
    } else {  // swiglu_step
      most_ = most_up_ = limit;
    }
  }

  __device__ float operator()(float g, float u) const {
    if (other_ == 0) {
      g = at_most(g, most_gate_);
      u = at_least(at_most(u, most_up_), -most_up_) + offset_;
      return at_most(g * sigmoid(fmaf(cubic_ * g * g, g, linear_ * g)), most_) * u;
    }
    if (other_ == 1) return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;  // gelu
    const float r = at_least(g, 0.0f);                                      // relu
    return other_ == 3 ? r * u : r * r * u;                                 // relu2
  }

 private:
  static constexpr float kAny = __builtin_huge_valf();
  int32_t other_ = 0;
  float linear_ = 1, cubic_ = 0, most_gate_ = kAny, most_up_ = kAny, offset_ = 0, most_ = kAny;
};

}  // namespace moe::cuda
