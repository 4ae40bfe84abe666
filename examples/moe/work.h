// What one forward has to compute and to read, for rooflines.
#pragma once

#include <cstdint>
#include <span>

#include "moe/weights.h"

namespace moe::cli {

struct Work {
  double flops = 0;         // a multiply-add counts twice
  double weight_bytes = 0;  // of activated experts, once each, with their scales; of the router
};

// Of one expert's weights, scales and zero points included.
double expert_bytes(const ExpertSpec& spec);

// Of `rows` rows whose routing is `ids`; `shared`: with the shared experts.
Work work_of(const LayerSpec& layer, std::span<const int32_t> ids, int64_t rows, bool shared);

}  // namespace moe::cli
