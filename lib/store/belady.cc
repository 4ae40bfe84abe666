// Belady's optimum: the expert that is needed last goes first.
#include <limits>

#include "moe/simulate.h"
#include "store/policy_base.h"
#include "store/trace_forwards.h"
#include "store/victim_heap.h"

namespace moe {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

class Belady final : public PolicyBase {
 public:
  Belady(const EvictionOptions& options, const RoutingTrace& trace)
      : PolicyBase(options),
        next_(static_cast<size_t>(index().experts())),
        forwards_(static_cast<size_t>(index().experts())),
        order_(0, index().experts()) {
    keep("next", &next_);
    TraceForwards forwards(trace);
    for (int64_t number = 0; forwards.next(); ++number) {
      for (const int32_t expert : forwards.experts().distinct()) {
        const int32_t i = index().find({forwards.row().layer, expert});
        if (i >= 0) forwards_[static_cast<size_t>(i)].push_back(number);
      }
    }
  }

  const char* name() const noexcept override { return "belady"; }

 private:
  // Farthest first.
  int64_t key(int32_t i) const {
    const auto& forwards = forwards_[static_cast<size_t>(i)];
    const size_t next = next_[static_cast<size_t>(i)];
    return -(next < forwards.size() ? forwards[next] : kNever);
  }

  void used(int32_t i) noexcept override {
    ++next_[static_cast<size_t>(i)];
    order_.update(i, key(i));
  }
  void add(int32_t i) noexcept override { order_.insert(i, key(i)); }
  void remove(int32_t i) noexcept override { order_.erase(i); }
  int32_t choose(const MayGo& may_go) const noexcept override {
    const auto* node = order_.least(may_go);
    return node ? node->index : -1;
  }

  std::vector<uint64_t> next_;                  // (experts): into forwards_
  std::vector<std::vector<int64_t>> forwards_;  // (experts): the numbers of those that need it
  VictimHeap<int64_t> order_;
};

Result<std::unique_ptr<EvictionPolicy>> make(const EvictionOptions& options,
                                             const RoutingTrace& trace) {
  return guarded({}, [&]() -> Result<std::unique_ptr<EvictionPolicy>> {
    MOE_RETURN_IF_ERROR(validate(trace));
    return std::unique_ptr<EvictionPolicy>(std::make_unique<Belady>(options, trace));
  });
}

}  // namespace

Result<std::unique_ptr<EvictionPolicy>> make_belady(const RoutingTrace& trace) {
  return make({.layers = trace.layers}, trace);
}

Result<std::unique_ptr<EvictionPolicy>> make_belady_per_layer(const RoutingTrace& trace) {
  return make_per_layer("belady-per-layer", {.layers = trace.layers},
                        [&](const EvictionOptions& options) { return make(options, trace); });
}

}  // namespace moe
