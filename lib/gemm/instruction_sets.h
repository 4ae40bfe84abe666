// Which of several sets of kernels, one per instruction set, this machine can run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <hwy/targets.h>

namespace moe::cpu {

// available() of a set that Highway compiled for kTarget, or for every machine.
template <int64_t kTarget>
bool has() {
  return (hwy::SupportedTargets() & kTarget) != 0;
}
inline bool always() { return true; }

// The first that this machine has of `all`, whose last one runs everywhere.
template <class K>
const K& first_available(std::span<const K> all) {
  return *std::find_if(all.begin(), all.end() - 1, [](const K& k) { return k.available(); });
}

}  // namespace moe::cpu
