#include "store/residency.h"

#include <algorithm>

#include "core/error.h"

namespace moe {

Residency::Residency(std::span<const LayerExperts> layers, int64_t slots, EvictionPolicy& policy)
    : index_(layers),
      slots_(slots),
      policy_(policy),
      resident_(static_cast<size_t>(index_.experts())),
      pinned_(static_cast<size_t>(index_.experts())),
      held_(static_cast<size_t>(index_.layers())) {}

namespace {

// Those of `base` that `layer` holds.
class OfLayer final : public EvictionCandidates {
 public:
  OfLayer(const EvictionCandidates& base, int32_t layer) : base_(base), layer_(layer) {}
  bool contains(ExpertId id) const noexcept override {
    return id.layer == layer_ && base_.contains(id);
  }

 private:
  const EvictionCandidates& base_;
  int32_t layer_;
};

}  // namespace

// Residents that neither the forward nor anybody else holds.
class Residency::Unpinned final : public EvictionCandidates {
 public:
  Unpinned(const Residency& all, const EvictionCandidates* others) : all_(all), others_(others) {}
  bool contains(ExpertId id) const noexcept override {
    const int32_t i = all_.index_.find(id);
    return i >= 0 && all_.resident_[static_cast<size_t>(i)] &&
           !all_.pinned_[static_cast<size_t>(i)] && (!others_ || others_->contains(id));
  }

 private:
  const Residency& all_;
  const EvictionCandidates* others_;
};

Result<bool> Residency::admit(ExpertId incoming, const EvictionCandidates& may_go,
                              ExpertId* evicted) {
  *evicted = {};
  const int32_t position = index_.position(incoming.layer);
  const int64_t limit = std::max<int64_t>(1, policy_.limit(incoming.layer, slots_));
  const bool at_limit = held_[static_cast<size_t>(position)] >= limit;
  if (at_limit || used_ == slots_) {
    const OfLayer own(may_go, incoming.layer);
    const EvictionCandidates& candidates = at_limit ? own : may_go;
    *evicted = policy_.victim(incoming, candidates);
    if (evicted->expert < 0) return false;
    if (!candidates.contains(*evicted))
      return error(StatusCode::failed_precondition,
                   {.layer = evicted->layer, .expert = evicted->expert},
                   "eviction policy '{}' chose an expert that may not go now", policy_.name());
    drop(*evicted);
  }
  resident_[static_cast<size_t>(index_.find(incoming))] = true;
  ++held_[static_cast<size_t>(position)];
  ++used_;
  policy_.inserted(incoming);
  return true;
}

void Residency::drop(ExpertId id) {
  resident_[static_cast<size_t>(index_.find(id))] = false;
  --held_[static_cast<size_t>(index_.position(id.layer))];
  --used_;
  policy_.evicted(id);
}

Status Residency::take_wave(int32_t layer, const EvictionCandidates* leased,
                            std::vector<int32_t>& pending, std::vector<int32_t>& wave,
                            std::vector<PagingEvent>* events) {
  const auto pin = [&](const std::vector<int32_t>& experts, bool on) {
    for (const int32_t expert : experts)
      pinned_[static_cast<size_t>(index_.find({layer, expert}))] = on;
  };
  wave.clear();
  pin(pending, true);
  Status status;
  bool room = true;
  const auto stays = [&](int32_t expert) {
    PagingEvent event{{layer, expert}, resident({layer, expert}), {}};
    if (!event.hit) {
      if (!room) return true;
      const Result<bool> admitted = admit(event.id, Unpinned(*this, leased), &event.evicted);
      if (!admitted.ok()) status = admitted.status();
      room = admitted.ok() && *admitted;
      if (!room) return true;
    }
    wave.push_back(expert);
    if (events) events->push_back(event);
    return false;
  };
  size_t kept = 0;
  for (size_t i = 0; i < pending.size(); ++i) {
    const int32_t expert = pending[i];
    if (stays(expert)) pending[kept++] = expert;
  }
  pending.resize(kept);
  pin(pending, false);
  pin(wave, false);
  return status;
}

}  // namespace moe
