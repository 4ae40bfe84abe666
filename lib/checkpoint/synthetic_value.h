// Weights out of nothing: the value of an element is a pure function of (seed, tensor, index), so
// that the host, a GPU and a test compute the same bits without a file.
//
//   tensor_key = XXH3_64bits_withSeed(tensor name, seed)        (host)
//   bits       = splitmix64's output for state tensor_key + index * 0x9e3779b97f4a7c15
//   value      = the sum of the four 16-bit fields of bits, centred and scaled to variance one
//
// The sum of four uniforms is close to a normal distribution and never further than 3.5 from 0.
// A matrix is divided by sqrt(inputs) afterwards, which keeps activations of unit size.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace moe {

MOE_HOST_DEVICE inline uint64_t synthetic_bits(uint64_t tensor_key, uint64_t index) {
  uint64_t z = tensor_key + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

// Mean 0, variance 1, in [-3.4642, 3.4642]. The sum is exact, so every machine rounds alike.
MOE_HOST_DEVICE inline float synthetic_value(uint64_t tensor_key, uint64_t index) {
  const uint64_t bits = synthetic_bits(tensor_key, index);
  const auto sum = static_cast<int32_t>((bits & 0xffff) + (bits >> 16 & 0xffff) +
                                        (bits >> 32 & 0xffff) + (bits >> 48));
  return static_cast<float>(sum - 131070) * 2.6429e-5f;  // sqrt(3) / 65536
}

}  // namespace moe
