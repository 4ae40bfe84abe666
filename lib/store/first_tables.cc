// What a store serves first: everything in version 1, or what a snapshot says.
#include <algorithm>
#include <map>
#include <utility>

#include "core/error.h"
#include "core/parallel.h"
#include "store/layer_specs.h"
#include "store/snapshot_file.h"
#include "store/store_impl.h"

namespace moe {
namespace {

// The sources of the versions that `first` names: the host's, and for one version at most the
// store's own.
Result<std::vector<const WeightSource*>> sources_of(const StoreSnapshot& first,
                                                    const RestoreOptions& restore,
                                                    const WeightSource& own) {
  std::vector<const WeightSource*> sources;
  const SnapshotVersion* unnamed = nullptr;
  for (const SnapshotVersion& wanted : first.versions) {
    const auto given =
        std::find_if(restore.sources.begin(), restore.sources.end(),
                     [&](const VersionSource& s) { return s.version == wanted.version; });
    const bool named = given != restore.sources.end() && given->source;
    if (!named && unnamed)
      return error(StatusCode::not_found, {.file = restore.snapshot},
                   "{}: the snapshot has version {} (from {}) and version {} (from {}), but "
                   "RestoreOptions::sources has neither; the store's own source is one of them at "
                   "most",
                   restore.snapshot, unnamed->version, unnamed->source, wanted.version,
                   wanted.source);
    if (!named) unnamed = &wanted;
    sources.push_back(named ? given->source : &own);
  }
  return sources;
}

// Calls `with(need)` for every routed expert that rows of a layer are served by.
template <class With>
void each_served(const StoreSnapshot::Layer& layer, With with) {
  for (size_t e = 0; e < layer.serving.experts.size(); ++e) {
    const auto expert = static_cast<int32_t>(e);
    const uint32_t version = layer.serving.experts[e];
    with(Need{expert, version});
    if (layer.candidate && layer.candidate->experts[e] != version)
      with(Need{expert, layer.candidate->experts[e]});
  }
}

bool is_served(const StoreSnapshot::Layer& layer, Need need) {
  const auto e = static_cast<size_t>(need.expert);
  return layer.serving.experts[e] == need.version ||
         (layer.candidate && layer.candidate->experts[e] == need.version);
}

}  // namespace

// That of a store which has done nothing yet.
StoreSnapshot ExpertStore::Impl::begin_anew() const {
  StoreSnapshot first;
  first.versions = {{1, std::string(source.name())}};
  for (const auto& layer : layers) {
    const auto experts = static_cast<size_t>(layer->spec.router.num_experts);
    StoreSnapshot::Layer& made = first.layers.emplace_back();
    made.layer = layer->spec.layer;
    made.uses.resize(experts);
    made.serving.router = 1;
    made.serving.experts.assign(experts, 1);
  }
  return first;
}

Status ExpertStore::Impl::add_versions(const StoreSnapshot& first) {
  MOE_ASSIGN_OR_RETURN(const auto sources, sources_of(first, options.restore, source));
  for (size_t i = 0; i < sources.size(); ++i) {
    if (sources[i] != &source)
      MOE_RETURN_IF_ERROR(check_same_layers(*sources[i], specs, options.format));
    add_version(first.versions[i].version, *sources[i]);
  }
  newest_version = first.newest;
  for (const StoreSnapshot::Expert& e : first.experts)
    find_version(e.version)->digest(find(e.id.layer)->index, e.id.expert) = e.digest;
  return {};
}

// Decides who is resident; the policies go on from where they were.
Result<std::vector<FirstLoad>> ExpertStore::Impl::first_residents(const StoreSnapshot& first) {
  for (const auto& layer : layers) {
    layer->experts.resize(static_cast<size_t>(layer->spec.router.num_experts));
    const StoreSnapshot::Layer& then = first.layers[layer->index];
    for (size_t e = 0; e < layer->experts.size(); ++e) layer->experts[e].uses = then.uses[e];
    SlotClass& slots = classes[layer->routed.slot_class];
    if (slots.paged()) continue;
    each_served(then, [&](Need need) {
      slots.residency->add({layer->spec.layer, need.expert}, need.version);
    });
  }
  for (const StoreSnapshot::Expert& e : first.experts) {
    const StoreLayer& layer = *find(e.id.layer);
    SlotClass& slots = classes[layer.routed.slot_class];
    const bool routed = e.id.expert != kSharedExpert;
    if (routed && e.resident && slots.paged() &&
        is_served(first.layers[layer.index], {e.id.expert, e.version}))
      slots.residency->add(e.id, e.version);
  }
  for (SlotClass& slots : classes) {
    if (!slots.residency) continue;
    if (const StoreSnapshot::Policy* then = policy_in(first, slots))
      MOE_RETURN_IF_ERROR(
          slots.residency->policy().restore(then->memory).at({.file = options.restore.snapshot}));
    while (slots.paged() && slots.residency->used() > slots.residency->slots())
      MOE_RETURN_IF_ERROR(slots.residency->shrink(nullptr).status());
  }

  std::vector<FirstLoad> loads;
  for (const auto& layer : layers) {
    const StoreSnapshot::Layer& then = first.layers[layer->index];
    const Residency& residency = *classes[layer->routed.slot_class].residency;
    each_served(then, [&](Need need) {
      if (residency.resident({layer->spec.layer, need.expert}, need.version))
        loads.push_back({layer.get(), need});
    });
    if (!layer->shared.gemm) continue;
    loads.push_back({layer.get(), {kSharedExpert, then.serving.router}});
    if (then.candidate && then.candidate->router != then.serving.router)
      loads.push_back({layer.get(), {kSharedExpert, then.candidate->router}});
  }
  return loads;
}

Status ExpertStore::Impl::load_first(std::vector<FirstLoad> loads) {
  int64_t total = 0, done = 0;
  for (FirstLoad& first : loads) {
    MOE_ASSIGN_OR_RETURN(first.slot, take_slot(*first.layer, first.need));
    total += static_cast<int64_t>(compute_of(*first.layer, first.need.expert).layout.bytes);
  }
  std::mutex progress_mutex;
  std::vector<Status> statuses(loads.size());
  std::atomic<bool> stop{false};
  parallel_for(&services.executor(), static_cast<int64_t>(loads.size()), [&](int64_t i, int) {
    if (stop.load(std::memory_order_relaxed)) return;
    const FirstLoad& first = loads[static_cast<size_t>(i)];
    Status& status = statuses[static_cast<size_t>(i)];
    status = load(*first.layer, first.need, first.slot, find_version(first.need.version));
    if (status.ok() && options.progress) {
      std::lock_guard lock(progress_mutex);
      done += static_cast<int64_t>(compute_of(*first.layer, first.need.expert).layout.bytes);
      if (!options.progress(options.progress_argument, done, total))
        status = Status(StatusCode::cancelled, "loading was cancelled by the progress callback",
                        {.phase = Phase::load});
    }
    if (!status.ok()) stop.store(true, std::memory_order_relaxed);
  });
  for (Status& status : statuses) MOE_RETURN_IF_ERROR(std::move(status));
  return {};
}

// The versions of one layer as `then` names them; `blocks` has those that were made before.
Result<std::shared_ptr<const LayerVersions>> ExpertStore::Impl::first_versions(
    StoreLayer& layer, const StoreSnapshot::Table& then,
    std::map<uint32_t, std::shared_ptr<const LayerBlock>>& blocks) {
  const auto made = make_versions(layer, {});
  made->experts = then.experts;
  for (const auto& version : versions)
    if (version->number == then.router ||
        std::find(then.experts.begin(), then.experts.end(), version->number) != then.experts.end())
      made->sources.push_back(version);
  std::shared_ptr<const LayerBlock>& block = blocks[then.router];
  if (!block) {
    const std::shared_ptr<Version> version = find_version(then.router);
    const int64_t shared = layer.shared.gemm ? ready_slot(layer, {kSharedExpert, then.router}) : -1;
    MOE_ASSIGN_OR_RETURN(block, make_block(layer, *version, shared));
    if (then.digest != 0 && then.digest != digest_of(*block))
      return error(StatusCode::data_loss,
                   {.file = version->source.name(), .layer = layer.spec.layer},
                   "the router of layer {} is not the one of the snapshot {}; restore with the "
                   "weights that it was taken of, or open without it",
                   layer.spec.layer, options.restore.snapshot);
  }
  made->block = block;
  return std::shared_ptr<const LayerVersions>(std::move(made));
}

Status ExpertStore::Impl::make_first_tables(const StoreSnapshot& first) {
  share = first.share;
  for (auto& layer : layers) {
    const StoreSnapshot::Layer& then = first.layers[layer->index];
    std::map<uint32_t, std::shared_ptr<const LayerBlock>> blocks;
    MOE_ASSIGN_OR_RETURN(layer->serving, first_versions(*layer, then.serving, blocks));
    if (then.candidate && *then.candidate == then.serving) {
      layer->candidate = layer->serving;
    } else if (then.candidate) {
      MOE_ASSIGN_OR_RETURN(layer->candidate, first_versions(*layer, *then.candidate, blocks));
    }
    if (then.previous) {
      MOE_ASSIGN_OR_RETURN(layer->previous, first_versions(*layer, *then.previous, blocks));
    }
  }
  reserve_tables();
  return publish_all();
}

Status ExpertStore::Impl::load_all() {
  StoreSnapshot first = begin_anew();
  if (!options.restore.snapshot.empty()) {
    MOE_ASSIGN_OR_RETURN(first, read_snapshot(options.restore.snapshot));
    MOE_RETURN_IF_ERROR(check_fits(first));
  }
  MOE_RETURN_IF_ERROR(add_versions(first));
  MOE_ASSIGN_OR_RETURN(auto loads, first_residents(first));
  MOE_RETURN_IF_ERROR(load_first(std::move(loads)));
  return make_first_tables(first);
}

}  // namespace moe
