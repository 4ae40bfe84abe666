// What a store writes down of itself, and whether another one may begin from it.
#include "moe/snapshot.h"

#include <algorithm>
#include <set>
#include <utility>

#include "core/error.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "store/snapshot_file.h"
#include "store/store_impl.h"

namespace moe {
namespace {

StoreSnapshot::Table table_of(const LayerVersions& versions) {
  return {versions.block->version, digest_of(*versions.block), versions.experts};
}

std::optional<StoreSnapshot::Table> table_of(const std::shared_ptr<const LayerVersions>& versions) {
  return versions ? std::optional(table_of(*versions)) : std::nullopt;
}

void add_versions(const StoreSnapshot::Table& table, std::set<uint32_t>& named) {
  named.insert(table.router);
  named.insert(table.experts.begin(), table.experts.end());
}

std::set<uint32_t> versions_of(const StoreSnapshot& snapshot) {
  std::set<uint32_t> named;
  for (const StoreSnapshot::Layer& layer : snapshot.layers) {
    add_versions(layer.serving, named);
    if (layer.candidate) add_versions(*layer.candidate, named);
    if (layer.previous) add_versions(*layer.previous, named);
  }
  return named;
}

std::vector<int32_t> layers_of(const ExpertStore::Impl& store, const SlotClass& slots) {
  std::vector<int32_t> of;
  for (const auto& layer : store.layers)
    if (&store.classes[layer->routed.slot_class] == &slots) of.push_back(layer->spec.layer);
  return of;
}

}  // namespace

uint64_t digest_of(const LayerBlock& block) {
  return XXH3_64bits(block.storage.data(), block.storage.size());
}

Result<StoreSnapshot> ExpertStore::Impl::snapshot() const {
  StoreSnapshot now;
  struct Tables {
    std::shared_ptr<const LayerVersions> serving, candidate, previous;
  };
  std::vector<Tables> tables;  // digested below, without the mutex
  {
    auto lock = locked();
    now.newest = newest_version;
    for (const auto& layer : layers) {
      tables.push_back({layer->serving, layer->candidate, layer->previous});
      if (layer->candidate) now.share = share;
      StoreSnapshot::Layer& made = now.layers.emplace_back();
      made.layer = layer->spec.layer;
      made.layout = layer->routed.layout.name;
      made.bytes = static_cast<int64_t>(layer->routed.layout.bytes);
      for (const StoreExpert& expert : layer->experts) made.uses.push_back(expert.uses);
    }
    for (const auto& version : versions) {
      now.versions.push_back({version->number, std::string(version->source.name())});
      for (const auto& layer : layers)
        for (int32_t e = kSharedExpert; e < layer->spec.router.num_experts; ++e) {
          const uint64_t digest = version->digest(layer->index, e);
          if (digest == 0) continue;
          const bool exists = e != kSharedExpert || layer->shared.gemm;
          const ExpertCopy* copy = exists ? find_copy(*layer, {e, version->number}) : nullptr;
          now.experts.push_back({{layer->spec.layer, e},
                                 version->number,
                                 digest,
                                 copy && copy->state == CopyState::ready});
        }
    }
    for (const SlotClass& slots : classes) {
      if (!slots.residency) continue;
      const EvictionPolicy& policy = slots.residency->policy();
      now.policies.push_back({policy.name(), layers_of(*this, slots), policy.memory()});
    }
  }
  for (size_t i = 0; i < tables.size(); ++i) {
    now.layers[i].serving = table_of(*tables[i].serving);
    now.layers[i].candidate = table_of(tables[i].candidate);
    now.layers[i].previous = table_of(tables[i].previous);
  }
  // Of a reload that is under way nothing is written.
  const std::set<uint32_t> named = versions_of(now);
  std::erase_if(now.versions, [&](const auto& v) { return !named.contains(v.version); });
  std::erase_if(now.experts, [&](const auto& e) { return !named.contains(e.version); });
  return now;
}

const StoreSnapshot::Policy* ExpertStore::Impl::policy_in(const StoreSnapshot& snapshot,
                                                          const SlotClass& slots) const {
  const std::vector<int32_t> of = layers_of(*this, slots);
  for (const StoreSnapshot::Policy& policy : snapshot.policies)
    if (policy.layers == of && policy.name == slots.residency->policy().name()) return &policy;
  return nullptr;
}

Status ExpertStore::Impl::check_fits(const StoreSnapshot& snapshot) const {
  const std::string& path = options.restore.snapshot;
  const Place place{.file = path};
  if (device)
    return error(StatusCode::unimplemented, place,
                 "{}: stores are restored on the CPU only yet; open without the snapshot", path);
  const auto other = [&](int32_t layer, const std::string& what) {
    return error(StatusCode::failed_precondition, {.file = path, .layer = layer},
                 "{}: the snapshot is of another model or store: {}; open without it", path, what);
  };
  if (snapshot.layers.size() != layers.size())
    return other(-1,
                 fmt::format("it has {} layers, wanted {}", snapshot.layers.size(), layers.size()));
  for (const auto& layer : layers) {
    const StoreSnapshot::Layer& then = snapshot.layers[layer->index];
    const SlotLayout& layout = layer->routed.layout;
    const auto experts = static_cast<size_t>(layer->spec.router.num_experts);
    const auto fits = [&](const std::optional<StoreSnapshot::Table>& table) {
      return !table || table->experts.size() == experts;
    };
    if (then.layer != layer->spec.layer || then.uses.size() != experts || !fits(then.serving) ||
        !fits(then.candidate) || !fits(then.previous) || then.layout != layout.name ||
        then.bytes != static_cast<int64_t>(layout.bytes))
      return other(then.layer,
                   fmt::format("layer {} has {} experts of {} bytes as '{}', wanted layer {} with "
                               "{} experts of {} bytes as '{}'",
                               then.layer, then.uses.size(), then.bytes, then.layout,
                               layer->spec.layer, experts, layout.bytes, layout.name));
  }
  for (const SlotClass& slots : classes)
    if (slots.residency && !policy_in(snapshot, slots))
      return other(-1, fmt::format("it has no memory of an eviction policy '{}' for these layers",
                                   slots.residency->policy().name()));
  return check_consistent(snapshot);
}

// What only a file that no store wrote can violate.
Status ExpertStore::Impl::check_consistent(const StoreSnapshot& snapshot) const {
  std::set<uint32_t> known;
  bool right = snapshot.share >= 0 && snapshot.share <= 1;
  for (const SnapshotVersion& version : snapshot.versions)
    right = right && version.version <= snapshot.newest && known.insert(version.version).second;
  for (const uint32_t version : versions_of(snapshot)) right = right && known.contains(version);
  std::set<std::tuple<uint32_t, int32_t, int32_t>> seen;
  for (const StoreSnapshot::Expert& e : snapshot.experts) {
    const auto at = std::find_if(specs.begin(), specs.end(),
                                 [&](const LayerSpec& spec) { return spec.layer == e.id.layer; });
    right = right && at != specs.end() && e.id.expert < at->router.num_experts &&
            known.contains(e.version) && seen.insert({e.version, e.id.layer, e.id.expert}).second;
  }
  if (right) return {};
  return invalid_argument({.file = options.restore.snapshot},
                          "{}: the snapshot contradicts itself: it names versions, experts or "
                          "shares that it cannot have; open without it",
                          options.restore.snapshot);
}

Status save_snapshot(const ExpertStore& store, const std::string& path) {
  return guarded({.file = path}, [&]() -> Status {
    if (store.device().kind != DeviceKind::cpu)
      return error(StatusCode::unimplemented, {.file = path},
                   "{}: stores are saved on the CPU only yet", path);
    MOE_ASSIGN_OR_RETURN(const StoreSnapshot snapshot, store.impl()->snapshot());
    return write_snapshot(snapshot, path);
  });
}

Result<std::vector<SnapshotVersion>> snapshot_versions(const std::string& path) {
  return guarded({.file = path}, [&]() -> Result<std::vector<SnapshotVersion>> {
    MOE_ASSIGN_OR_RETURN(StoreSnapshot snapshot, read_snapshot(path));
    return std::move(snapshot.versions);
  });
}

}  // namespace moe
