// A store on a GPU at work while its model is used: new versions of paged layers, and scrubs.
#include <atomic>
#include <cstring>
#include <thread>

#include "catch.h"
#include "cuda/pair.h"
#include "store/store_impl.h"

namespace {

using namespace moe;
using namespace moe::cuda::test;
using moe::test::Random;
using moe::test::RandomModel;
using moe::test::skip;

LayerSpec layer_with_shared() {
  LayerSpec spec = plain_layer(0, 16, 4);
  spec.shared.emplace();
  spec.shared->expert = spec.expert;
  spec.shared->sigmoid_gate = true;
  return spec;
}

// What passes on until it is told to fail, or to hold the router in another type.
class Changed final : public WeightSource {
 public:
  explicit Changed(const WeightSource& inner) : inner_(inner) {}
  const std::vector<LayerSpec>& layers() const noexcept override { return inner_.layers(); }
  Result<TensorShape> describe(const WeightId& id) const override {
    Result<TensorShape> shape = inner_.describe(id);
    if (bf16_router && id.kind == WeightKind::router_weight) shape->dtype = DType::bf16;
    return shape;
  }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    if (broken) return Status(StatusCode::unavailable, "the disk is gone");
    if (!bf16_router || id.kind != WeightKind::router_weight) return inner_.read(id, out);
    std::memset(out.data, 0, static_cast<size_t>(out.shape.elements()) * 2);
    return {};
  }
  std::string_view name() const noexcept override { return inner_.name(); }
  std::atomic<bool> broken{false};
  bool bf16_router = false;

 private:
  const WeightSource& inner_;
};

// A model with a context, on rows that stay.
struct Used {
  Used(const WeightSource& source, const HostRows& hidden, size_t expert_memory = 0)
      : model(must(Model::create(source, {.device = kGpu, .expert_memory = expert_memory}))),
        context(must(Context::create(model, {.stream = cuda_stream(stream.stream)}))),
        in(hidden),
        out(hidden) {}
  HostRows forward() {
    must(model.forward(context, 0, in.view(), out.mutable_view()));
    MOE_CHECK(cudaStreamSynchronize(stream.stream));
    return out.host();
  }
  // Flips a bit of an expert's copy on the device.
  void damage(int32_t expert) {
    ExpertStore::Impl& store = *model.store().impl();
    StoreLayer& layer = *store.layers[0];
    std::byte* slot = nullptr;
    {
      std::lock_guard lock(store.mutex);
      const Compute& compute = store.compute_of(layer, expert);
      slot = store.classes[compute.slot_class].pool->address(store.record(layer, expert).first);
    }
    uint8_t byte = 0;
    MOE_CHECK(cudaMemcpy(&byte, slot + 77, 1, cudaMemcpyDeviceToHost));
    byte ^= 0x40;
    MOE_CHECK(cudaMemcpy(slot + 77, &byte, 1, cudaMemcpyHostToDevice));
  }

  OwnStream stream;
  Model model;
  Context context;
  DeviceRows in, out;
};

}  // namespace

TEST_CASE("a paged model on a GPU is reloaded while it computes", "[cuda][moving]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const LayerSpec spec = layer_with_shared();
  const RandomModel one({spec}, random, DType::bf16), two({spec}, random, DType::bf16);
  const HostRows hidden(random, 24, 64, DType::bf16);
  Used first(one.source(), hidden), second(two.source(), hidden);
  const size_t slot = first.model.store().stats().slot_bytes;
  Used paged(one.source(), hidden, 8 * slot);
  const HostRows before = first.forward(), after = second.forward();
  REQUIRE(distance(before, after, 24) > 0.1);
  REQUIRE(distance(paged.forward(), before, 24) < 1e-2);

  Status trouble;
  std::atomic<bool> done{false};
  std::thread reloader([&] {
    for (int n = 0; n < 20 && trouble.ok(); ++n)
      trouble = paged.model.store().reload(n % 2 == 0 ? two.source() : one.source()).status();
    done = true;
  });
  int ones = 0, twos = 0, neither = 0;
  while (!done || ones + twos + neither < 30) {
    const HostRows got = paged.forward();
    const bool is_first = distance(got, before, 24) < 1e-2;
    const bool is_second = distance(got, after, 24) < 1e-2;
    ones += is_first;
    twos += is_second;
    neither += !is_first && !is_second;
  }
  reloader.join();
  must(trouble);
  std::printf("%d forwards of the first version, %d of the second\n", ones, twos);
  CHECK(neither == 0);
  CHECK(ones > 0);
  CHECK(distance(paged.forward(), before, 24) < 1e-2);
  must(paged.model.store().reload(two.source(), {.step = ReloadStep::expert}));
  CHECK(distance(paged.forward(), after, 24) < 1e-2);
  must(paged.model.store().rollback());
  CHECK(distance(paged.forward(), before, 24) < 1e-2);
}

TEST_CASE("a router of another type is refused by a store on a GPU", "[cuda]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const RandomModel source({plain_layer()}, random, DType::bf16);
  const HostRows hidden(random, 5, 64, DType::bf16);
  Used used(source.source(), hidden);
  const HostRows before = used.forward();
  Changed other(source.source());
  other.bf16_router = true;
  const Status refused =
      used.model.store()
          .reload(other, {.experts = {{0, kSharedExpert}}, .step = ReloadStep::expert})
          .status();
  CHECK(refused.code() == StatusCode::invalid_argument);
  CHECK(refused.message().find("other types") != std::string_view::npos);
  CHECK(used.forward().bytes == before.bytes);
}

TEST_CASE("a scrub on a GPU finds what changed there and replaces it", "[cuda][moving]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const RandomModel weights({layer_with_shared()}, random, DType::bf16);
  Changed source(weights.source());
  const HostRows hidden(random, 60, 64, DType::bf16);
  for (const int64_t slots : {0, 9}) {  // resident, paged
    CAPTURE(slots);
    const size_t slot = Used(source, hidden).model.store().stats().slot_bytes;
    Used used(source, hidden, static_cast<size_t>(slots) * slot);
    const HostRows before = used.forward();
    ExpertStore& store = used.model.store();
    const ScrubReport clean = must(store.scrub());
    CHECK(clean.copies == store.stats().ready + 1);  // and the shared one
    CHECK(clean.found == 0);
    CHECK(clean.wrapped);

    int32_t resident = 0;
    while (must(store.health(0, resident)).state != CopyState::ready) ++resident;
    for (const int32_t expert : {resident, kSharedExpert}) {
      CAPTURE(expert);
      used.damage(expert);
      const ScrubReport report = must(store.scrub());
      CHECK(report.found == 1);
      CHECK(report.repaired == 1);
      CHECK(distance(used.forward(), before, 60) < 1e-3);
      CHECK(must(store.scrub()).found == 0);
    }

    // What cannot be read again: a resident layer keeps it, and says so each time.
    used.damage(resident);
    source.broken = true;
    const ScrubReport lost = must(store.scrub());
    CHECK(lost.found == 1);
    CHECK(lost.repaired == 0);
    CHECK((must(store.health(0, resident)).state == CopyState::ready) == (slots == 0));
    source.broken = false;
    (void)must(store.scrub());
    CHECK(distance(used.forward(), before, 60) < 1e-3);
    CHECK(must(store.scrub()).found == 0);
  }
}
