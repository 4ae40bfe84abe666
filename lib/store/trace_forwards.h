// Walks through a trace forward by forward.
#pragma once

#include "moe/trace.h"
#include "store/expert_index.h"
#include "store/forward_experts.h"

namespace moe {

// Needs validate(trace); `trace` must outlive it.
class TraceForwards {
 public:
  explicit TraceForwards(const RoutingTrace& trace) : trace_(trace), index_(trace.layers) {}

  // Goes to the next forward; false after the last.
  bool next() {
    const size_t size = trace_.rows.size();
    const bool started = end_ > 0;
    const int64_t seq = started ? row().seq : 0;
    if (end_ == size) return false;
    begin_ = end_++;
    new_sequence_ = started && row().seq != seq;
    while (end_ < size && same_forward(trace_.rows[end_], row())) ++end_;
    const size_t top_k = static_cast<size_t>(trace_.top_k);
    experts_.gather(trace_.experts.data() + begin_ * top_k,
                    trace_.weights.empty() ? nullptr : trace_.weights.data() + begin_ * top_k,
                    rows(), trace_.top_k, index_.experts(index_.position(row().layer)));
    return true;
  }

  const TraceRow& row() const { return trace_.rows[begin_]; }  // the first
  size_t first_row() const { return begin_; }                  // its index in the trace
  int64_t rows() const { return static_cast<int64_t>(end_ - begin_); }
  bool new_sequence() const { return new_sequence_; }
  const ForwardExperts& experts() const { return experts_; }
  ExpertAccess access() const {
    return {row().layer, experts_.distinct(), experts_.mean_weights()};
  }

 private:
  static bool same_forward(const TraceRow& a, const TraceRow& b) {
    return a.seq == b.seq && a.step == b.step && a.layer == b.layer;
  }

  const RoutingTrace& trace_;
  ExpertIndex index_;
  size_t begin_ = 0, end_ = 0;
  bool new_sequence_ = false;
  ForwardExperts experts_;
};

}  // namespace moe
