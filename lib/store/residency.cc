#include "store/residency.h"

#include <algorithm>
#include <cassert>

#include "core/error.h"

namespace moe {
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

Residency::Residency(std::span<const LayerExperts> layers, int64_t slots, EvictionPolicy& policy)
    : index_(layers),
      slots_(slots),
      policy_(policy),
      held_(static_cast<size_t>(index_.experts())),
      of_layer_(static_cast<size_t>(index_.layers())) {}

// Residents that neither the forward nor anybody else holds.
class Residency::Unpinned final : public EvictionCandidates {
 public:
  Unpinned(const Residency& all, const Leases* leases) : all_(all), leases_(leases) {}
  bool contains(ExpertId id) const noexcept override { return version(id) != 0; }

  // The version that may go; the older one first. 0: none.
  uint32_t version(ExpertId id) const noexcept {
    const int32_t i = all_.index_.find(id);
    if (i < 0) return 0;
    const Slots& held = all_.held_[static_cast<size_t>(i)];
    uint32_t oldest = 0;
    for (size_t k = 0; k < 2; ++k) {
      const uint32_t version = held.version[k];
      if (version == 0 || held.pinned[k] || (leases_ && leases_->leased(id, version))) continue;
      if (oldest == 0 || version < oldest) oldest = version;
    }
    return oldest;
  }

 private:
  const Residency& all_;
  const Leases* leases_;
};

int Residency::place(ExpertId id, uint32_t version) const {
  const Slots& held = held_[static_cast<size_t>(index_.find(id))];
  for (size_t k = 0; k < 2; ++k)
    if (held.version[k] == version) return static_cast<int>(k);
  return -1;
}

void Residency::pin(int32_t layer, std::span<const Need> needs, bool on) {
  for (const Need& need : needs) {
    const ExpertId id{layer, need.expert};
    if (const int k = place(id, need.version); k >= 0)
      held_[static_cast<size_t>(index_.find(id))].pinned[static_cast<size_t>(k)] = on;
  }
}

void Residency::add(ExpertId id, uint32_t version) {
  Slots& held = held_[static_cast<size_t>(index_.find(id))];
  const bool first = !resident(id);
  assert(versions(id) < kVersions);
  held.version[held.version[0] == 0 ? 0 : 1] = version;
  ++of_layer_[static_cast<size_t>(index_.position(id.layer))];
  ++used_;
  if (first) policy_.inserted(id);
}

void Residency::drop(ExpertId id, uint32_t version) {
  Slots& held = held_[static_cast<size_t>(index_.find(id))];
  const auto k = static_cast<size_t>(place(id, version));
  held.version[k] = 0;
  held.pinned[k] = false;
  --of_layer_[static_cast<size_t>(index_.position(id.layer))];
  --used_;
  if (!resident(id)) policy_.evicted(id);
}

uint32_t Residency::any_version(ExpertId id) const {
  const Slots& held = held_[static_cast<size_t>(index_.find(id))];
  return held.version[0] != 0 ? held.version[0] : held.version[1];
}

// Whether `layer` holds as many slots as the policy grants it.
bool Residency::full(int32_t layer) const {
  const int64_t limit = std::max<int64_t>(1, policy_.limit(layer, slots_));
  return of_layer_[static_cast<size_t>(index_.position(layer))] >= limit;
}

// Whom the policy lets go for `incoming`; {} if it knows nobody.
Result<ExpertId> Residency::choose(ExpertId incoming, const EvictionCandidates& may_go) {
  const OfLayer own(may_go, incoming.layer);
  const bool among_own = incoming.expert >= 0 && full(incoming.layer);
  const EvictionCandidates& candidates = among_own ? own : may_go;
  const ExpertId out = policy_.victim(incoming, candidates);
  if (out.expert < 0) return ExpertId{};
  if (candidates.contains(out)) return out;
  return error(StatusCode::failed_precondition, {.layer = out.layer, .expert = out.expert},
               "eviction policy '{}' chose an expert that may not go now", policy_.name());
}

Result<bool> Residency::admit(ExpertId incoming, const EvictionCandidates& may_go,
                              ExpertId* evicted) {
  *evicted = {};
  if (full(incoming.layer) || used_ >= slots_) {
    MOE_ASSIGN_OR_RETURN(*evicted, choose(incoming, may_go));
    if (evicted->expert < 0) return false;
    drop(*evicted, any_version(*evicted));
  }
  add(incoming, 1);
  return true;
}

Result<Residency::Decision> Residency::shrink(const Leases* leases) {
  const Unpinned may_go(*this, leases);
  Decision out;
  MOE_ASSIGN_OR_RETURN(out.evicted, choose({}, may_go));
  if (out.evicted.expert < 0) return out;
  out.evicted_version = may_go.version(out.evicted);
  drop(out.evicted, out.evicted_version);
  return out;
}

Status Residency::take_wave(int32_t layer, const Leases* leases, std::vector<Need>& pending,
                            std::vector<Decision>& wave) {
  wave.clear();
  wave.reserve(pending.size());
  pin(layer, pending, true);
  const Unpinned may_go(*this, leases);
  Status status;
  bool room = true;
  const auto stays = [&](const Need& need) {
    const ExpertId id{layer, need.expert};
    Decision taken{need, resident(id, need.version), {}, 0};
    if (!taken.hit) {
      if (!room) return true;
      if (versions(id) == kVersions) {
        if (!may_go.contains(id)) return true;
        taken.evicted = id;
      } else if (full(layer) || used_ >= slots_) {
        const Result<ExpertId> out = choose(id, may_go);
        if (!out.ok()) status = out.status();
        room = out.ok() && out->expert >= 0;
        if (!room) return true;
        taken.evicted = *out;
      }
      if (taken.evicted.expert >= 0) {
        taken.evicted_version = may_go.version(taken.evicted);
        drop(taken.evicted, taken.evicted_version);
      }
      add(id, need.version);
    }
    pin(layer, {&need, 1}, true);
    wave.push_back(taken);
    return false;
  };
  size_t kept = 0;
  for (size_t i = 0; i < pending.size(); ++i) {
    const Need need = pending[i];
    if (stays(need)) pending[kept++] = need;
  }
  pending.resize(kept);
  pin(layer, pending, false);
  if (!status.ok()) {  // as before
    for (const Decision& taken : wave) {
      if (taken.hit) continue;
      drop({layer, taken.need.expert}, taken.need.version);
      if (taken.evicted.expert >= 0) add(taken.evicted, taken.evicted_version);
    }
    wave.clear();
  }
  for (const Decision& taken : wave) pin(layer, {&taken.need, 1}, false);
  return status;
}

}  // namespace moe
