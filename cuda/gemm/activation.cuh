// moe::Activation on the device; fp32. g = gate, u = up.
#pragma once

#include <cstdint>

namespace moe::cuda {

__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

__device__ inline float activate(int32_t kind, float alpha, float limit, float g, float u) {
  switch (kind) {
    case 0: return g * sigmoid(g) * u;                             // silu
    case 1: return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;  // gelu
    case 2: {                                                      // gelu_tanh
      const float inner = 0.79788456f * (g + 0.044715f * g * g * g);
      return g * sigmoid(2.0f * inner) * u;
    }
    case 3: return fmaxf(g, 0.0f) * u;  // relu
    case 4: {
      const float r = fmaxf(g, 0.0f);
      return r * r * u;
    }          // relu2
    case 5: {  // swiglu_oai
      g = fminf(g, limit);
      u = fminf(fmaxf(u, -limit), limit);
      return (u + 1.0f) * g * sigmoid(alpha * g);
    }
    default: {  // swiglu_step
      u = fminf(fmaxf(u, -limit), limit);
      return fminf(g * sigmoid(g), limit) * u;
    }
  }
}

}  // namespace moe::cuda
