// What the built-in policies share: numbering, recency, and who is resident. Each policy keeps its
// own order of the residents up to date and picks from it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "core/error.h"
#include "moe/eviction.h"
#include "store/expert_index.h"

namespace moe {

class PolicyBase : public EvictionPolicy {
 public:
  void accessed(const ExpertAccess& access) noexcept final;
  void inserted(ExpertId id) noexcept final;
  void evicted(ExpertId id) noexcept final;
  ExpertId victim(ExpertId incoming, const EvictionCandidates& candidates) noexcept final;
  PolicyMemory memory() const final;
  Status restore(const PolicyMemory& memory) final;

 protected:
  // True if the resident with this index may go.
  class MayGo {
   public:
    MayGo(const ExpertIndex& index, const EvictionCandidates& candidates)
        : index_(index), candidates_(candidates) {}
    bool operator()(int32_t index) const { return candidates_.contains(index_.id(index)); }

   private:
    const ExpertIndex& index_;
    const EvictionCandidates& candidates_;
  };

  explicit PolicyBase(const EvictionOptions& options);

  // Makes an array part of memory(). Constructors call it for all that their keys are made from.
  using Array = std::variant<std::vector<uint64_t>*, std::vector<double>*, std::vector<bool>*>;
  void keep(const char* name, Array array) { kept_.push_back({name, array}); }

  // A forward begins at the layer in `position`; used() follows for each of its experts.
  virtual void visited(int32_t /*position*/, const ExpertAccess&) noexcept {}
  // Its last use is now. It need not be resident.
  virtual void used(int32_t index) noexcept = 0;
  // It comes; add() follows.
  virtual void arrived(int32_t /*index*/) noexcept {}
  // It is resident from now on, or no longer.
  virtual void add(int32_t index) noexcept = 0;
  virtual void remove(int32_t index) noexcept = 0;
  // The resident that goes first among those that `may_go`, or -1.
  virtual int32_t choose(const MayGo& may_go) const noexcept = 0;

  const ExpertIndex& index() const { return index_; }
  // Position of the last forward.
  int32_t current() const { return static_cast<int32_t>(now_[kPosition]); }

  // When the expert was last used; unique. One that is brought in before its layer asked for it
  // counts as used then.
  uint64_t last_use(int32_t index) const { return last_use_[static_cast<size_t>(index)]; }

  // Layers until the turn of the one in `position` comes, 1 ... layers.
  int32_t distance(int32_t position) const {
    const int32_t ahead = position - current();
    return ahead > 0 ? ahead : ahead + index_.layers();
  }

 private:
  enum { kPosition, kClock };
  struct Kept {
    const char* name;
    Array array;
  };

  ExpertIndex index_;
  std::vector<uint64_t> now_ = {0, 0};  // kPosition, kClock
  std::vector<uint64_t> last_use_;      // (experts)
  std::vector<uint64_t> visit_start_;   // (layers): the clock when the layer's last forward began
  std::vector<bool> resident_;          // (experts)
  std::vector<bool> missed_;            // (experts): not there when it was used last, nor since
  std::vector<Kept> kept_;
};

// Made by `Policy(options)` after the checks that all policies need.
template <class Policy>
Result<std::unique_ptr<EvictionPolicy>> make_policy(const EvictionOptions& options) {
  return guarded({}, [&]() -> Result<std::unique_ptr<EvictionPolicy>> {
    MOE_RETURN_IF_ERROR(validate(std::span(options.layers)));
    return std::unique_ptr<EvictionPolicy>(std::make_unique<Policy>(options));
  });
}

// An equal share of the slots for every layer, each with a policy of its own that `make` makes.
Result<std::unique_ptr<EvictionPolicy>> make_per_layer(
    const char* name, const EvictionOptions& options,
    const std::function<Result<std::unique_ptr<EvictionPolicy>>(const EvictionOptions&)>& make);

}  // namespace moe
