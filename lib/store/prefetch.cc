#include "store/prefetch.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "store/store_impl.h"

namespace moe {

Prefetcher::Prefetcher(std::span<const LayerExperts> layers, PrefetchKind wanted)
    : kind(wanted), ledger(layers) {}

Result<std::unique_ptr<Prefetcher>> Prefetcher::create(std::vector<LayerExperts> layers,
                                                       PrefetchKind kind) {
  std::unique_ptr<Prefetcher> made(new Prefetcher(layers, kind));
  if (kind != PrefetchKind::activation) return made;
  MOE_ASSIGN_OR_RETURN(auto predictor, ActivationPredictor::create({.layers = std::move(layers)}));
  made->predictor.emplace(std::move(predictor));
  return made;
}

void Prefetcher::used(int32_t layer_of, std::span<const int32_t> needed) {
  for (const int32_t expert : needed) {
    const PrefetchEffect effect = ledger.used({layer_of, expert});
    if (effect == PrefetchEffect::saved_load) ++stats.used, sample.saved_ns += load_ns;
    if (effect == PrefetchEffect::extra_load) sample.cost_ns += load_ns;
  }
  if (predictor) predictor->accessed(layer_of, needed);
  governor.step(std::exchange(sample, {}));
}

Status ExpertStore::Impl::start_prefetching() {
  if (options.prefetch == PrefetchKind::none) return {};
  if (device)
    return Status(StatusCode::unimplemented, "experts are prefetched on the CPU only yet");
  std::vector<LayerExperts> all;
  for (const LayerSpec& spec : specs) all.push_back({spec.layer, spec.router.num_experts});
  MOE_ASSIGN_OR_RETURN(prefetcher, Prefetcher::create(std::move(all), options.prefetch));
  return schedule ? Status() : prefetch_thread.start(1, services.clock(), "prefetch");
}

StoreLayer* ExpertStore::Impl::layer_to_prefetch(const StoreLayer& after, PrefetchKind kind) {
  if (!prefetcher || prefetcher->kind != kind || after.index + 1 >= layers.size()) return nullptr;
  StoreLayer& next = *layers[after.index + 1];
  auto lock = locked();
  const bool now = !prefetcher->pending && prefetcher->governor.enabled();
  return now && classes[next.routed.slot_class].paged() ? &next : nullptr;
}

void ExpertStore::Impl::prefetch_predicted(const StoreLayer& after) {
  StoreLayer* next = layer_to_prefetch(after, PrefetchKind::activation);
  if (!next) return;
  std::vector<int32_t> experts;
  {
    auto lock = locked();
    auto& found = prefetcher->predictions;
    found.resize(static_cast<size_t>(next->spec.router.top_k));
    found.resize(prefetcher->predictor->predict(1, found));
    for (const PredictedExpert& p : found)
      if (p.id.layer == next->spec.layer) experts.push_back(p.id.expert);
  }
  prefetch(*next, experts, 0);
}

void ExpertStore::Impl::prefetch(StoreLayer& layer, std::span<const int32_t> experts,
                                 int64_t cost_ns) {
  {
    auto lock = locked();
    prefetcher->sample.cost_ns += cost_ns;
    if (experts.empty() || prefetcher->pending) return;
    prefetcher->layer = layer.index;
    prefetcher->experts.assign(experts.rbegin(), experts.rend());
    prefetcher->pending = true;
  }
  const auto job = [this] {
    const Status ignored = guarded({}, [&] { return run_prefetch(); });  // the forward will read
    std::lock_guard lock(mutex);
    prefetcher->pending = false;
  };
  if (schedule)
    schedule->spawn(job);
  else
    prefetch_thread.submit(job);
}

// One expert after the other, each in a move of its own that is planned as a wave is: a forward
// that misses meanwhile goes before the next one, and counts its wait behind the one as a cost.
Status ExpertStore::Impl::run_prefetch() {
  constexpr int64_t kDeadlineNs = 10'000'000'000;
  const int64_t end_ns = services.clock().now_ns() + kDeadlineNs;
  for (bool more = true; more;) {
    MOE_ASSIGN_OR_RETURN(more, prefetch_one(end_ns));
  }
  return {};
}

// The most urgent expert of the guess that is not here; false if there is none, or no room.
Result<bool> ExpertStore::Impl::prefetch_one(int64_t end_ns) {
  const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
  if (!turn.entered()) return false;
  StoreLayer& layer = *layers[prefetcher->layer];
  struct Flag {
    std::atomic<bool>& on;
    explicit Flag(std::atomic<bool>& flag) : on(flag) { on = true; }
    ~Flag() { on = false; }
  } const flag(prefetching);
  {
    auto lock = locked();
    std::vector<int32_t>& left = prefetcher->experts;
    const auto need = [&] {
      return Need{left.back(), layer.serving->experts[static_cast<size_t>(left.back())]};
    };
    while (!left.empty() && find_copy(layer, need())) left.pop_back();
    if (left.empty()) return false;
    const Need next = need();
    left.pop_back();
    MOE_ASSIGN_OR_RETURN(const bool planned, plan_wave(layer, {&next, 1}, true));
    if (!planned) return false;
  }
  MOE_RETURN_IF_ERROR(carry_out(layer, end_ns, true));
  return true;
}

}  // namespace moe
