// Sources, allocators and listeners for tests of the store, and small layers to open.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "model/random_model.h"
#include "moe/model.h"

#define REQUIRE_OK(call)                    \
  do {                                      \
    const ::moe::Status ok_status = (call); \
    INFO(ok_status.message());              \
    REQUIRE(ok_status.ok());                \
  } while (false)

namespace moe::test {

// Passes reads on; fails the n-th one, once or for ever.
class FaultySource final : public WeightSource {
 public:
  explicit FaultySource(const WeightSource& inner) : inner_(inner) {}
  const std::vector<LayerSpec>& layers() const noexcept override { return inner_.layers(); }
  Result<TensorShape> describe(const WeightId& id) const override { return inner_.describe(id); }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    const int64_t call = calls.fetch_add(1);
    if (fail_at >= 0 && (call == fail_at || (for_ever && call > fail_at)))
      return Status(StatusCode::data_loss, "injected read error", {.tensor = to_string(id.kind)});
    return inner_.read(id, out);
  }
  std::string_view name() const noexcept override { return "faulty"; }

  mutable std::atomic<int64_t> calls{0};
  int64_t fail_at = -1;
  bool for_ever = false;

 private:
  const WeightSource& inner_;
};

// Fails the n-th allocation; counts what is out.
class FaultyAllocator final : public Allocator {
 public:
  void* allocate(size_t bytes, size_t alignment) noexcept override {
    if (calls++ == fail_at) return nullptr;
    outstanding += static_cast<int64_t>(bytes);
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  }
  void deallocate(void* memory, size_t bytes, size_t) noexcept override {
    outstanding -= static_cast<int64_t>(bytes);
    std::free(memory);
  }
  std::atomic<int64_t> calls{0}, outstanding{0};
  int64_t fail_at = -1;
};

// `old_source`, but for some experts (kSharedExpert: the layer's router and shared expert) that are
// those of `new_source`.
class MixedSource final : public WeightSource {
 public:
  MixedSource(const WeightSource& old_source, const WeightSource& new_source,
              std::vector<ExpertId> replaced)
      : old_(old_source), new_(new_source), replaced_(std::move(replaced)) {}
  const std::vector<LayerSpec>& layers() const noexcept override { return old_.layers(); }
  Result<TensorShape> describe(const WeightId& id) const override { return of(id).describe(id); }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    return of(id).read(id, out);
  }
  std::string_view name() const noexcept override { return "mixed"; }

 private:
  const WeightSource& of(const WeightId& id) const {
    for (const ExpertId& r : replaced_)
      if (r.layer == id.layer && r.expert == id.expert) return new_;
    return old_;
  }
  const WeightSource& old_;
  const WeightSource& new_;
  std::vector<ExpertId> replaced_;
};

// One tensor of `inner` gets a value that is not finite.
class NanSource final : public WeightSource {
 public:
  NanSource(const WeightSource& inner, WeightId where) : inner_(inner), where_(where) {}
  const std::vector<LayerSpec>& layers() const noexcept override { return inner_.layers(); }
  Result<TensorShape> describe(const WeightId& id) const override { return inner_.describe(id); }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    const Status status = inner_.read(id, out);
    const bool here =
        id.layer == where_.layer && id.expert == where_.expert && id.kind == where_.kind;
    if (here) store_float(out.dtype, static_cast<std::byte*>(out.data), 0, NAN);
    return status;
  }
  std::string_view name() const noexcept override { return "not finite"; }

 private:
  const WeightSource& inner_;
  WeightId where_;
};

// Remembers what it was told.
class Events final : public EventSink {
 public:
  void event(const StoreEvent& event) noexcept override {
    std::lock_guard lock(mutex_);
    all_.push_back(event);
  }
  std::vector<StoreEvent> of(StoreEventKind kind) const {
    std::lock_guard lock(mutex_);
    std::vector<StoreEvent> some;
    for (const StoreEvent& event : all_)
      if (event.kind == kind) some.push_back(event);
    return some;
  }
  size_t count(StoreEventKind kind) const { return of(kind).size(); }

 private:
  mutable std::mutex mutex_;
  std::vector<StoreEvent> all_;
};

inline LayerSpec small_layer(int32_t layer, int32_t experts = 8, int32_t top_k = 2) {
  LayerSpec spec;
  spec.layer = layer;
  spec.router.num_experts = experts;
  spec.router.top_k = top_k;
  spec.expert = {.hidden = 24, .intermediate = 20};
  spec.expert.format = {FormatKind::f32, 0};
  spec.shared.emplace();
  spec.shared->expert = spec.expert;
  spec.shared->expert.intermediate = 12;
  return spec;
}

constexpr int64_t kSpare = 2;  // slots of each size

// expert_memory for `slots` routed experts of `layers` layers like `spec`.
inline size_t memory_for(int64_t slots, int64_t layers, const LayerSpec& spec = small_layer(0)) {
  auto gemm = make_expert_gemm({}, spec.expert);
  REQUIRE(gemm.ok());
  auto stride = [&](const ExpertSpec& expert) {
    return ((*gemm)->layout(expert).bytes + 63) / 64 * 64;
  };
  return static_cast<size_t>(slots + kSpare) * stride(spec.expert) +
         static_cast<size_t>(layers) * stride(spec.shared->expert);
}

struct Forwarded {
  Status status;
  std::vector<float> out;
};

inline Forwarded forward(Model& model, int32_t layer, const Rows& hidden,
                         const ForwardOptions& options = {}) {
  Forwarded result;
  result.out.assign(static_cast<size_t>(hidden.shape.elements()), NAN);
  result.status =
      model.forward(layer, hidden.view(), {result.out.data(), DType::f32, hidden.shape}, options);
  return result;
}

}  // namespace moe::test
