// Who computes a token of a model that does not fit: the store, or the same kernels on a mapping.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>

#include "moe/model.h"
#include "moe/trace.h"

namespace moe::paging_bench {

[[noreturn]] inline void fail(std::string_view what) {
  std::fprintf(stderr, "paging_bench: %.*s\n", static_cast<int>(what.size()), what.data());
  std::_Exit(1);
}
inline void check(const Status& status) {
  if (!status.ok()) fail(status.message());
}
template <class T>
T take(Result<T> result) {
  check(result.status());
  return std::move(*result);
}

// What all runners are given.
struct Setup {
  const Checkpoint& checkpoint;
  const RoutingTrace& trace;
  std::string eviction;  // of the store
  std::string packed;    // file of slots, (layers, experts), for the mappings
  std::unique_ptr<ExpertGemm> gemm;
  size_t stride = 0;  // of a slot in `packed`

  const LayerSpec& layer(size_t i) const { return checkpoint.layers()[i]; }
  size_t layers() const { return checkpoint.layers().size(); }
  const int32_t* ids(int64_t token, size_t layer) const {
    const size_t row = static_cast<size_t>(token) * layers() + layer;
    return trace.experts.data() + row % trace.rows.size() * static_cast<size_t>(trace.top_k);
  }
  size_t experts() const { return static_cast<size_t>(layer(0).router.num_experts); }
  size_t packed_bytes() const { return stride * layers() * experts(); }
  size_t memory() const { return packed_bytes() / 4; }  // expert_memory

  std::vector<float> row() const {
    std::mt19937_64 random(1);
    std::vector<float> row(static_cast<size_t>(layer(0).hidden()));
    for (float& x : row) x = std::normal_distribution<float>()(random);
    return row;
  }
};

class Runner {
 public:
  virtual ~Runner() = default;
  virtual void forward(int64_t token, size_t layer) = 0;
  virtual PagingStats paging() const { return {}; }
};

class StoreRunner final : public Runner {
 public:
  explicit StoreRunner(const Setup& setup)
      : setup_(setup),
        model_(take(Model::create(setup.checkpoint,
                                  {.expert_memory = setup.memory(), .eviction = setup.eviction}))),
        context_(take(Context::create(model_))),
        row_(setup.row()),
        out_(row_.size()),
        ids_(static_cast<size_t>(setup.trace.top_k)),
        weights_(ids_.size(), 1.0f / static_cast<float>(ids_.size())) {}

  void forward(int64_t token, size_t layer) override {
    const int32_t top_k = setup_.trace.top_k;
    const Dims shape = {1, static_cast<int64_t>(row_.size())};
    std::copy_n(setup_.ids(token, layer), top_k, ids_.begin());
    const Routing routing{1, top_k, ids_.data(), weights_.data()};
    check(model_.forward(context_, setup_.layer(layer).layer, {row_.data(), DType::f32, shape},
                         {out_.data(), DType::f32, shape},
                         {.top_k = top_k, .routing_in = &routing}));
  }
  PagingStats paging() const override { return model_.store().stats().paging; }

 private:
  const Setup& setup_;
  Model model_;
  Context context_;
  std::vector<float> row_, out_;
  std::vector<int32_t> ids_;
  std::vector<float> weights_;
};

// Spared: packing, digests, and the weighted sum.
class MapRunner final : public Runner {
 public:
  MapRunner(const Setup& setup, bool will_need)
      : setup_(setup),
        will_need_(will_need),
        executor_(take(make_executor())),
        row_(setup.row()),
        out_(row_.size() * static_cast<size_t>(setup.trace.top_k)),
        scratch_(setup.gemm->workspace_bytes(setup.layer(0).expert, setup.trace.top_k,
                                             setup.trace.top_k, executor_->concurrency())),
        workspace_(scratch_ + 64),
        groups_(static_cast<size_t>(setup.trace.top_k)),
        pairs_(groups_.size()) {
    const int file = ::open(setup.packed.c_str(), O_RDONLY | O_CLOEXEC);
    slots_ = static_cast<std::byte*>(
        ::mmap(nullptr, setup.packed_bytes(), PROT_READ, MAP_SHARED, file, 0));
    if (slots_ == MAP_FAILED) fail("mmap");
  }

  void forward(int64_t token, size_t layer) override {
    const int32_t* ids = setup_.ids(token, layer);
    for (size_t k = 0; k < groups_.size(); ++k) {
      const size_t expert = layer * setup_.experts() + static_cast<size_t>(ids[k]);
      groups_[k] = {slots_ + expert * setup_.stride, ids[k], static_cast<int64_t>(k), 1};
    }
    std::sort(groups_.begin(), groups_.end(),
              [](const ExpertGroup& a, const ExpertGroup& b) { return a.expert < b.expert; });
    for (size_t k = 0; k < groups_.size(); ++k) {
      pairs_[k] = groups_[k].first;
      groups_[k].first = static_cast<int64_t>(k);
      if (will_need_)
        ::madvise(const_cast<std::byte*>(groups_[k].slot), setup_.stride, MADV_WILLNEED);
    }
    ExpertBatch batch;
    batch.hidden = {row_.data(), DType::f32, {1, static_cast<int64_t>(row_.size())}};
    batch.top_k = setup_.trace.top_k;
    batch.groups = groups_;
    batch.pairs = pairs_.data();
    batch.out = out_.data();
    batch.executor = executor_.get();
    auto* aligned = reinterpret_cast<std::byte*>(
        (reinterpret_cast<uintptr_t>(workspace_.data()) + 63) / 64 * 64);
    batch.workspace = {aligned, scratch_};
    check(setup_.gemm->run(setup_.layer(0).expert, batch));
  }

 private:
  const Setup& setup_;
  bool will_need_;
  std::unique_ptr<Executor> executor_;
  std::vector<float> row_, out_;
  size_t scratch_;
  std::vector<std::byte> workspace_;
  std::vector<ExpertGroup> groups_;
  std::vector<int64_t> pairs_;
  std::byte* slots_;
};

}  // namespace moe::paging_bench
