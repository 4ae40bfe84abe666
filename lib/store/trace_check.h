// What makes a row of a trace wrong.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "moe/trace.h"

namespace moe {

inline constexpr int32_t kMostTraceLayers = 1 << 16;
inline constexpr int32_t kMostTraceTopK = 1 << 12;

// "" or the fault of one row. `experts` is how many its layer has; ids and weights: (top_k),
// weights may be empty.
std::string trace_row_fault(const TraceRow& row, int32_t experts, std::span<const int32_t> ids,
                            std::span<const float> weights);

}  // namespace moe
