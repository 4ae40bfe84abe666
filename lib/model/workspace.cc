#include "model/workspace.h"

#include <algorithm>

#include "router/cpu_router.h"

namespace moe {
namespace {

constexpr int64_t kRowBudgetBytes = int64_t{256} << 20;
constexpr int64_t kSmallestChunk = 64;

class Cutter {
 public:
  explicit Cutter(std::byte* base) : base_(base) {}
  template <class T>
  std::span<T> take(int64_t count) {
    const size_t begin = (at_ + 63) / 64 * 64;
    at_ = begin + sizeof(T) * static_cast<size_t>(count);
    if (!base_) return {};
    return {reinterpret_cast<T*>(base_ + begin), static_cast<size_t>(count)};
  }
  size_t bytes() const { return (at_ + 63) / 64 * 64; }

 private:
  std::byte* base_;
  size_t at_ = 0;
};

}  // namespace

int64_t chunk_tokens(const LayerSpec& spec, const BatchShape& batch) {
  const int64_t row_bytes = spec.hidden() * 4 * std::max<int32_t>(batch.top_k, 1);
  return std::min(batch.tokens, std::max(kSmallestChunk, kRowBudgetBytes / row_bytes));
}

Workspace Workspace::cut(const StoreLayer& layer, const BatchShape& batch, std::byte* base) {
  const LayerSpec& spec = layer.spec;
  const int64_t chunk = chunk_tokens(spec, batch);
  const int64_t all_pairs = batch.tokens * batch.top_k;
  const int64_t pairs = chunk * batch.top_k;
  const int64_t experts = spec.router.num_experts;
  const int64_t groups = std::min(2 * experts, pairs);

  size_t scratch =
      route_workspace_bytes(spec.router, spec.hidden(), batch.tokens, batch.concurrency);
  scratch = std::max(
      scratch, layer.routed.gemm->workspace_bytes(spec.expert, pairs, groups, batch.concurrency));
  Cutter cutter(base);
  Workspace w;
  w.ids = cutter.take<int32_t>(all_pairs);
  w.weights = cutter.take<float>(all_pairs);
  w.side = cutter.take<uint8_t>(batch.tokens);
  w.side_ids = cutter.take<int32_t>(all_pairs);
  w.side_weights = cutter.take<float>(all_pairs);
  w.pairs = cutter.take<int64_t>(pairs);
  w.keys = cutter.take<int32_t>(pairs);
  w.first_pair = cutter.take<int64_t>(2 * experts + 1);
  w.groups = cutter.take<ExpertGroup>(groups);
  w.wave_groups = cutter.take<ExpertGroup>(groups);
  w.needs = cutter.take<Need>(groups);
  w.needed = cutter.take<Need>(groups);
  w.rows = cutter.take<float>(pairs * spec.hidden());
  if (layer.shared.gemm) {
    w.shared_pairs = cutter.take<int64_t>(chunk);
    w.shared_rows = cutter.take<float>(chunk * spec.hidden());
    w.shared_gate = cutter.take<float>(chunk);
    w.shared_scratch = cutter.take<std::byte>(static_cast<int64_t>(
        layer.shared.gemm->workspace_bytes(spec.shared->expert, chunk, 2, batch.concurrency)));
  }
  w.order = cutter.take<int32_t>(static_cast<int64_t>(batch.concurrency) * batch.top_k);
  w.scratch = cutter.take<std::byte>(static_cast<int64_t>(scratch));
  w.bytes = cutter.bytes();
  return w;
}

}  // namespace moe
