// Checking and writing traces.
#include "moe/trace.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "store/expert_index.h"
#include "store/trace_check.h"

namespace moe {

std::string trace_row_fault(const TraceRow& row, int32_t experts, std::span<const int32_t> ids,
                            std::span<const float> weights) {
  if (row.layer < 0 || row.layer >= kMostTraceLayers)
    return fmt::format("layer is {}; wanted 0 to {}", row.layer, kMostTraceLayers - 1);
  for (size_t place = 0; place < ids.size(); ++place) {
    const int32_t id = ids[place];
    if (id < -1 || id >= experts)
      return fmt::format("e{} is {}; layer {} has {} experts", place, id, row.layer, experts);
    if (id >= 0 && std::find(ids.begin(), ids.begin() + static_cast<ptrdiff_t>(place), id) !=
                       ids.begin() + static_cast<ptrdiff_t>(place))
      return fmt::format("expert {} is chosen twice", id);
  }
  for (size_t place = 0; place < weights.size(); ++place) {
    if (!std::isfinite(weights[place])) return fmt::format("w{} is not finite", place);
  }
  return {};
}

namespace {

Status validate_rows(const RoutingTrace& trace) {
  const ExpertIndex index(trace.layers);
  const size_t top_k = static_cast<size_t>(trace.top_k);
  for (size_t r = 0; r < trace.rows.size(); ++r) {
    const TraceRow& row = trace.rows[r];
    const int32_t position = index.position(row.layer);
    if (position < 0)
      return invalid_argument({.layer = row.layer}, "row {}: the trace does not list its layer", r);
    const std::span ids(trace.experts.data() + r * top_k, top_k);
    const std::span weights(trace.weights.data() + (trace.weights.empty() ? 0 : r * top_k),
                            trace.weights.empty() ? 0 : top_k);
    const std::string fault = trace_row_fault(row, index.experts(position), ids, weights);
    if (!fault.empty()) return invalid_argument({.layer = row.layer}, "row {}: {}", r, fault);
  }
  return {};
}

}  // namespace

Status validate(const RoutingTrace& trace) {
  return guarded({}, [&]() -> Status {
    MOE_RETURN_IF_ERROR(validate(std::span(trace.layers)));
    if (trace.top_k < 1 || trace.top_k > kMostTraceTopK)
      return invalid_argument({}, "top_k is {}; wanted 1 to {}", trace.top_k, kMostTraceTopK);
    const size_t choices = trace.rows.size() * static_cast<size_t>(trace.top_k);
    if (trace.experts.size() != choices)
      return invalid_argument({}, "{} experts; wanted {} rows * top_k {}", trace.experts.size(),
                              trace.rows.size(), trace.top_k);
    if (!trace.weights.empty() && trace.weights.size() != choices)
      return invalid_argument({}, "{} weights; wanted none or {} rows * top_k {}",
                              trace.weights.size(), trace.rows.size(), trace.top_k);
    return validate_rows(trace);
  });
}

Status write_trace(const RoutingTrace& trace, std::string_view path) {
  MOE_RETURN_IF_ERROR(validate(trace));
  const bool weights = !trace.weights.empty();
  MOE_ASSIGN_OR_RETURN(auto writer, TraceWriter::create(path, trace.layers, trace.top_k, weights));
  const size_t top_k = static_cast<size_t>(trace.top_k);
  for (size_t r = 0; r < trace.rows.size(); ++r) {
    // The writer only reads what Routing points to.
    auto* ids = const_cast<int32_t*>(trace.experts.data() + r * top_k);
    auto* w = weights ? const_cast<float*>(trace.weights.data() + r * top_k) : nullptr;
    MOE_RETURN_IF_ERROR(writer.append(trace.rows[r], {1, trace.top_k, ids, w}));
  }
  return writer.finish();
}

}  // namespace moe
