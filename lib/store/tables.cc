// Tables: what readers find, written from the copies that are ready.
#include <algorithm>
#include <utility>

#include "core/error.h"
#include "store/finite_source.h"
#include "store/layer_block.h"
#include "store/mover.h"

namespace moe {

void Mover::reserve_tables() {
  constexpr size_t kTables = 4;  // of one move: without the victims, with them again, with the new
  size_t all = 0;
  for (auto& layer : layers) {
    layer->spare_tables.reserve(kTables + 4);
    while (layer->spare_tables.size() < kTables) {
      auto table = std::make_unique<ExpertTable>();
      table->experts.resize(layer->experts.size());
      table->candidate.experts.resize(layer->experts.size());
      table->layer = layer->index;
      layer->spare_tables.push_back(std::move(table));
    }
    all += layer->spare_tables.size() + 1;
  }
  retired.reserve(retired.size() + all);
}

void Mover::write(StoreLayer& layer, const std::shared_ptr<const LayerVersions>& versions,
                  Serving& serving) {
  serving.versions = versions;
  serving.block = versions->block;
  const SlotPool& pool = *classes[layer.routed.slot_class].pool;
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    const uint32_t version = versions->experts[e];
    const ExpertCopy* copy = find_copy(layer, {static_cast<int32_t>(e), version});
    serving.experts[e] = {};
    if (!copy || copy->state != CopyState::ready) continue;
    const int64_t slot = slot_of(layer.routed, *copy);
    serving.experts[e] = {pool.address(slot), slot, version};
  }
}

Status Mover::publish(StoreLayer& layer) {
  if (layer.spare_tables.empty()) reserve_tables();
  std::unique_ptr<ExpertTable> next = std::move(layer.spare_tables.back());
  layer.spare_tables.pop_back();
  next->epoch = ++epoch;
  write(layer, layer.serving, *next);
  next->share = layer.candidate ? share : 0;
  if (layer.candidate) write(layer, layer.candidate, next->candidate);
  const auto complete = [](const Serving& serving) {
    return std::all_of(serving.experts.begin(), serving.experts.end(),
                       [](const TableCopy& copy) { return copy.slot; });
  };
  next->resident = !classes[layer.routed.slot_class].paged() && complete(*next) &&
                   (!layer.candidate || complete(next->candidate));
  if (device) {
    if (Status status = device->publish(layer.index, *next); !status.ok()) {
      recycle(std::move(next));
      return status;
    }
  }
  if (auto* old = layer.table.exchange(next.release(), std::memory_order_seq_cst))
    retired.emplace_back(const_cast<ExpertTable*>(old));
  return {};
}

Status Mover::publish_all() {
  Status first;
  for (auto& layer : layers)
    if (Status status = publish(*layer); first.ok()) first = std::move(status);
  return first;
}

void Mover::recycle(std::unique_ptr<ExpertTable> table) {
  static_cast<Serving&>(*table).versions.reset();
  table->block.reset();
  table->candidate.versions.reset();
  table->candidate.block.reset();
  table->copy.reset();
  auto& spare = layers[table->layer]->spare_tables;
  if (spare.size() < spare.capacity()) spare.push_back(std::move(table));
}

Status Mover::wait_for_grace(int64_t end_ns) {
  if (breaks(Rule::wait_for_readers)) return {};
  size_t before;
  {
    std::lock_guard lock(mutex);
    before = retired.size();
  }
  MOE_RETURN_IF_ERROR(readers.wait_for_grace(services.clock(), end_ns, schedule));
  if (device) MOE_RETURN_IF_ERROR(device->wait_for_grace(services.clock(), end_ns));
  std::lock_guard lock(mutex);
  for (size_t i = 0; i < before; ++i) recycle(std::move(retired[i]));
  retired.erase(retired.begin(), retired.begin() + static_cast<std::ptrdiff_t>(before));
  return {};
}

// ---- what belongs to a table beside experts

namespace {

// Kernels of a captured graph are chosen by which tensors a router has, and of which types.
bool same_tensors(const RouterWeights& a, const RouterWeights& b) {
  const auto there = [](const TensorView& x, const TensorView& y) { return !x.data == !y.data; };
  return a.weight.dtype == b.weight.dtype && a.token_experts.dtype == b.token_experts.dtype &&
         a.token_experts.shape == b.token_experts.shape && there(a.weight, b.weight) &&
         there(a.logit_bias, b.logit_bias) && there(a.selection_bias, b.selection_bias) &&
         there(a.per_expert_scale, b.per_expert_scale) && there(a.input_scale, b.input_scale);
}

}  // namespace

Result<std::shared_ptr<const LayerBlock>> Mover::make_block(StoreLayer& layer,
                                                            const Version& version,
                                                            int64_t shared_slot) {
  const std::byte* at = nullptr;
  if (shared_slot >= 0) {
    auto lock = locked();
    at = classes[layer.shared.slot_class].pool->address(shared_slot);
  }
  const FiniteSource finite(version.source);
  const WeightSource& from = version.check_finite ? finite : version.source;
  MOE_ASSIGN_OR_RETURN(auto block, load_layer_block(from, layer.spec.layer, at));
  block->shared_slot = shared_slot;
  block->version = version.number;
  if (device && layer.serving && !same_tensors(layer.serving->block->router, block->router))
    return invalid_argument({.file = from.name(), .layer = layer.spec.layer},
                            "the router of {} has tensors of other types than the one that serves, "
                            "which graphs on a GPU are made for; open a store for it",
                            from.name());
  if (device) {
    MOE_ASSIGN_OR_RETURN(block->copy, device->copy(layer.spec, *block));
  }
  return std::shared_ptr<const LayerBlock>(std::move(block));
}

}  // namespace moe
