// New versions of experts while forwards go on, and the way back: outputs are byte-equal to those
// of a store that was opened with the declared version.
#include <atomic>
#include <cstring>
#include <thread>

#include "store/store_faults.h"

using namespace moe;
using namespace moe::test;

namespace {

const std::vector<LayerSpec> kLayers = {small_layer(0), small_layer(1)};

struct Worlds {
  explicit Worlds(Random& random) : old_model(kLayers, random), new_model(kLayers, random) {}
  const WeightSource& older() const { return old_model.source(); }
  const WeightSource& newer() const { return new_model.source(); }
  RandomModel old_model, new_model;
};

// A store's memory: everything resident with room for two versions, just everything, or paged.
enum class Memory { ample, tight, paged };

ModelOptions options_for(Memory memory, FaultyAllocator& allocator, EventSink* events = nullptr) {
  ModelOptions options;
  options.expert_memory = memory == Memory::ample   ? 0
                          : memory == Memory::tight ? memory_for(16, 2)
                                                    : memory_for(5, 2);
  options.host.memory = &allocator;
  options.events = events;
  return options;
}

Model open(const WeightSource& source, const ModelOptions& options = {}) {
  auto model = Model::create(source, options);
  INFO(model.status().message());
  REQUIRE(model.ok());
  return *std::move(model);
}

// Both layers answer `hidden` as `wanted` does.
void require_same(Model& got, Model& wanted, const Rows& hidden) {
  for (const int32_t layer : {0, 1}) {
    const Forwarded a = forward(got, layer, hidden), b = forward(wanted, layer, hidden);
    INFO(a.status.message());
    REQUIRE(a.status.ok());
    REQUIRE(b.status.ok());
    REQUIRE(std::memcmp(a.out.data(), b.out.data(), a.out.size() * 4) == 0);
  }
}

}  // namespace

TEST_CASE("one expert, some, or all are reloaded, and rolled back",
          "[store][mission-103][mission-105]") {
  Random random(test::seed());
  const Worlds worlds(random);
  Model old_answers = open(worlds.older());
  const std::vector<std::vector<ExpertId>> sets = {
      {{0, 3}}, {{0, 1}, {1, 6}, {1, kSharedExpert}, {0, 1}}, {}};
  for (const Memory memory : {Memory::ample, Memory::tight, Memory::paged}) {
    for (const ReloadStep step : {ReloadStep::all, ReloadStep::layer, ReloadStep::expert}) {
      for (const auto& experts : sets) {
        CAPTURE(static_cast<int>(memory), static_cast<int>(step), experts.size());
        const MixedSource mixed(worlds.older(), worlds.newer(), experts);
        Model new_answers = open(experts.empty() ? worlds.newer() : mixed);
        FaultyAllocator allocator;
        Events events;
        {
          Model model = open(worlds.older(), options_for(memory, allocator, &events));
          ExpertStore& store = model.store();
          const Rows hidden(random, 17, 24, DType::f32);
          require_same(model, old_answers, hidden);
          const auto version = store.reload(worlds.newer(), {.experts = experts, .step = step});
          // Beside everything there are two spare slots: enough for one expert after the other.
          if (memory == Memory::tight && step != ReloadStep::expert && experts.empty()) {
            REQUIRE(version.status().code() == StatusCode::resource_exhausted);
            CHECK(version.status().message().find("expert by expert") != std::string_view::npos);
            require_same(model, old_answers, hidden);
            CHECK(events.count(StoreEventKind::reload_failed) == 1);
            continue;
          }
          REQUIRE_OK(version.status());
          CHECK(*version == 2);
          CHECK(events.count(StoreEventKind::reload_done) == 1);
          require_same(model, new_answers, hidden);
          CHECK(store.versions().back().version == 2);
          for (const ExpertId id : experts) CHECK(store.health(id.layer, id.expert)->version == 2);

          REQUIRE_OK(store.rollback());
          CHECK(events.count(StoreEventKind::rollback_done) == 1);
          require_same(model, old_answers, hidden);
          REQUIRE_OK(store.rollback());
          require_same(model, new_answers, hidden);

          REQUIRE_OK(store.forget_previous());
          CHECK(store.stats().kept_bytes == 0);
          CHECK(store.rollback().code() == StatusCode::failed_precondition);
          CHECK(store.versions().size() == (experts.empty() ? 1 : 2));
          require_same(model, new_answers, hidden);
        }
        CHECK(allocator.outstanding == 0);
      }
    }
  }
}

TEST_CASE("expert by expert, residents of a paged layer are read once and stay resident",
          "[store][mission-103][mission-81]") {
  Random random(test::seed());
  const Worlds worlds(random);
  Model new_answers = open(worlds.newer());
  FaultyAllocator allocator;
  Model model = open(worlds.older(), options_for(Memory::paged, allocator));
  ExpertStore& store = model.store();
  const auto residents = [&](uint32_t version) {
    std::vector<ExpertId> found;
    for (const int32_t layer : {0, 1})
      for (int32_t e = 0; e < kLayers[0].router.num_experts; ++e) {
        const ExpertHealth health = *store.health(layer, e);
        if (health.state == CopyState::ready && health.version == version)
          found.push_back({layer, e});
      }
    return found;
  };
  const Rows hidden(random, 17, 24, DType::f32);
  for (const int32_t layer : {0, 1}) REQUIRE_OK(forward(model, layer, hidden).status);
  const std::vector<ExpertId> before = residents(1);
  REQUIRE(before.size() == 5);
  const PagingStats paging = store.stats().paging;
  FaultySource counted(worlds.newer());
  REQUIRE_OK(store.reload(counted, {.step = ReloadStep::expert}).status());
  CHECK(residents(2) == before);
  const int64_t reads = counted.calls;
  for (const ExpertId id : before) {  // each served from its slot
    std::vector<int32_t> ids(34, -1);
    for (size_t i = 0; i < ids.size(); i += 2) ids[i] = id.expert;
    std::vector<float> whole(34, 1);
    const Routing routing{17, 2, ids.data(), whole.data()};
    const Forwarded got = forward(model, id.layer, hidden, {.routing_in = &routing}),
                    wanted = forward(new_answers, id.layer, hidden, {.routing_in = &routing});
    REQUIRE_OK(got.status);
    CHECK(got.out == wanted.out);
  }
  CHECK(counted.calls == reads);
  CHECK(store.stats().paging.misses == paging.misses);
  // The policy goes on with whom it knew.
  require_same(model, new_answers, hidden);
  CHECK(store.stats().ready == 5);
  REQUIRE_OK(store.rollback());
  Model old_answers = open(worlds.older());
  require_same(model, old_answers, hidden);
}

TEST_CASE("a bad source changes nothing", "[store][mission-93][mission-96]") {
  Random random(test::seed());
  const Worlds worlds(random);
  Model old_answers = open(worlds.older());
  const Rows hidden(random, 17, 24, DType::f32);
  for (const Memory memory : {Memory::ample, Memory::tight, Memory::paged}) {
    FaultyAllocator allocator;
    Events events;
    Model model = open(worlds.older(), options_for(memory, allocator, &events));
    ExpertStore& store = model.store();
    size_t failures = 0;
    const auto unchanged = [&](const Status& status, StatusCode code) {
      INFO(status.message());
      REQUIRE(status.code() == code);
      CHECK(events.count(StoreEventKind::reload_failed) == failures);
      REQUIRE(store.versions().size() == 1);
      CHECK(store.rollback().code() == StatusCode::failed_precondition);
      CHECK(store.stats().kept_bytes == 0);
      require_same(model, old_answers, hidden);
    };

    // Another shape, a layer that is missing: refused before anything is read.
    LayerSpec wide = small_layer(1);
    wide.expert.intermediate = 28;
    const RandomModel other({small_layer(0), wide}, random), fewer({small_layer(0)}, random);
    unchanged(store.reload(other.source()).status(), StatusCode::invalid_argument);
    unchanged(store.reload(fewer.source()).status(), StatusCode::invalid_argument);
    unchanged(store.reload(worlds.newer(), {.experts = {{0, 8}}}).status(),
              StatusCode::invalid_argument);
    unchanged(store.reload(worlds.newer(), {.share = 1.5}).status(), StatusCode::invalid_argument);
    unchanged(store.reload(worlds.newer(), {.loads_at_once = 0}).status(),
              StatusCode::invalid_argument);

    // One value that is not finite, in an expert, the shared one, a router.
    for (const WeightId bad :
         {WeightId{1, WeightKind::down, 5}, WeightId{1, WeightKind::up, kSharedExpert},
          WeightId{1, WeightKind::router_weight}}) {
      const NanSource source(worlds.newer(), bad);
      const Status status = store.reload(source, {.step = ReloadStep::expert}).status();
      ++failures;
      CHECK(status.place().layer == 1);
      unchanged(status, StatusCode::data_loss);
    }

    // The n-th read fails, once and for ever.
    const ReloadStep step = memory == Memory::tight ? ReloadStep::expert : ReloadStep::all;
    for (const bool for_ever : {false, true}) {
      for (int64_t n = 0; n < 200; n += 1 + random.between(0, 6)) {
        FaultySource source(worlds.newer());
        source.fail_at = n;
        source.for_ever = for_ever;
        const auto reloaded = store.reload(source, {.step = step});
        if (reloaded.ok()) {
          REQUIRE(n >= source.calls);
          REQUIRE_OK(store.rollback());
          REQUIRE_OK(store.forget_previous());
          break;
        }
        ++failures;
        unchanged(reloaded.status(), StatusCode::data_loss);
      }
    }
  }
}

TEST_CASE("a store that keeps another format than its source reloads as it was opened",
          "[store][mission-46][mission-103]") {
  Random random(test::seed());
  const Worlds worlds(random);
  const Rows hidden(random, 17, 24, DType::f32);
  for (const FormatKind kind : {FormatKind::int8, FormatKind::bf16}) {
    const Format format{kind, 0};
    LayerSpec kept = small_layer(0);
    kept.expert.format = kept.shared->expert.format = format;
    const auto opened = [&](const WeightSource& source, size_t memory = 0) {
      return open(source, {.expert_memory = memory, .format = format});
    };
    Model old_answers = opened(worlds.older());
    for (const bool paged : {false, true})
      for (const ReloadStep step : {ReloadStep::all, ReloadStep::layer, ReloadStep::expert})
        for (const auto& experts : std::vector<std::vector<ExpertId>>{{{0, 3}}, {}}) {
          CAPTURE(to_string(kind), paged, static_cast<int>(step), experts.size());
          const MixedSource mixed(worlds.older(), worlds.newer(), experts);
          Model new_answers = opened(experts.empty() ? worlds.newer() : mixed);
          Model model = opened(worlds.older(), paged ? memory_for(5, 2, kept) : 0);
          REQUIRE_OK(model.store().reload(worlds.newer(), {experts, step}).status());
          require_same(model, new_answers, hidden);
          REQUIRE_OK(model.store().scrub().status());
          REQUIRE_OK(model.store().rollback());
          require_same(model, old_answers, hidden);
          const NanSource bad(worlds.newer(), {0, WeightKind::down, 3});
          CHECK(model.store().reload(bad, {experts, step}).status().code() ==
                StatusCode::data_loss);
          require_same(model, old_answers, hidden);
        }
  }
}

TEST_CASE("what differs between a source and the store is said", "[store][mission-93]") {
  Random random(test::seed());
  const Worlds worlds(random);
  const Rows hidden(random, 17, 24, DType::f32);
  const auto refuses = [&](Model& model, Model& answers, const LayerSpec& first,
                           std::string_view wanted) {
    const MemoryWeights other({first, kLayers[1]});  // refused before anything is read
    const Status status = model.store().reload(other).status();
    INFO(status.message());
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.place().layer == 0);
    CHECK(status.message().find(wanted) != std::string_view::npos);
    require_same(model, answers, hidden);
  };
  LayerSpec wide = small_layer(0), shared_wide = wide, other_rule = wide, half = wide, plain = wide;
  wide.expert.intermediate = 28;
  shared_wide.shared->expert.intermediate = 16;
  other_rule.router.scoring = Scoring::sigmoid;
  half.expert.format = {FormatKind::bf16, 0};
  plain.shared.reset();
  for (const auto& format : {std::optional<Format>(), std::optional(Format{FormatKind::int8, 0})}) {
    Model model = open(worlds.older(), {.format = format});
    Model answers = open(worlds.older(), {.format = format});
    refuses(model, answers, wide,
            "8 experts of 24 x 28 silu, top 2, a shared one of 12, the one that serves 8 experts "
            "of 24 x 20 silu, top 2, a shared one of 12");
    refuses(model, answers, shared_wide, "a shared one of 16");
    refuses(model, answers, plain, "has 8 experts of 24 x 20 silu, top 2, the one that serves");
    refuses(model, answers, other_rule, "has another routing rule or kind of expert");
  }
  Model model = open(worlds.older());
  Model answers = open(worlds.older());
  refuses(model, answers, half, "are in bf16, those that serve in f32");
  half.expert.format = {FormatKind::f32, 0};
  half.shared->expert.format = {FormatKind::bf16, 0};
  refuses(model, answers, half, "are in bf16, those that serve in f32");
}

TEST_CASE("bytes that change in a source are refused", "[store][mission-96]") {
  Random random(test::seed());
  const Worlds worlds(random);
  // The same tensors at first, another model's later.
  class Turning final : public WeightSource {
   public:
    explicit Turning(const Worlds& worlds) : worlds_(worlds) {}
    const std::vector<LayerSpec>& layers() const noexcept override { return now().layers(); }
    Result<TensorShape> describe(const WeightId& id) const override { return now().describe(id); }
    Status read(const WeightId& id, const MutableTensorView& out) const override {
      return now().read(id, out);
    }
    std::string_view name() const noexcept override { return "turning"; }
    std::atomic<bool> turned{false};

   private:
    const WeightSource& now() const { return turned ? worlds_.newer() : worlds_.older(); }
    const Worlds& worlds_;
  } source(worlds);
  const Rows hidden(random, 40, 24, DType::f32);
  for (const FormatKind kind : {FormatKind::f32, FormatKind::int8}) {
    LayerSpec kept = small_layer(0);
    kept.expert.format = kept.shared->expert.format = {kind, 0};
    const ModelOptions options{.expert_memory = memory_for(5, 2, kept),
                               .format = kept.expert.format};
    Model model = open(source, options);
    Model answers = open(worlds.older(), {.format = kept.expert.format});
    require_same(model, answers, hidden);
    source.turned = true;
    const Forwarded got = forward(model, 0, hidden);
    CHECK(got.status.code() == StatusCode::data_loss);
    CHECK(got.status.message().find("not those that were read before") != std::string_view::npos);
    source.turned = false;
    require_same(model, answers, hidden);
  }
}

TEST_CASE("two versions share the requests by a stable hash", "[store][mission-104]") {
  Random random(test::seed());
  const Worlds worlds(random);
  Model old_answers = open(worlds.older()), new_answers = open(worlds.newer());
  for (const Memory memory : {Memory::ample, Memory::paged}) {
    FaultyAllocator allocator;
    Model model = open(worlds.older(), options_for(memory, allocator));
    ExpertStore& store = model.store();
    constexpr int64_t kRows = 60;
    const Rows hidden(random, kRows, 24, DType::f32);
    std::vector<uint64_t> ids(kRows);
    for (uint64_t& id : ids) id = static_cast<uint64_t>(random.between(0, 1 << 20));

    const auto check = [&](double share) {
      for (const int32_t layer : {0, 1}) {
        CAPTURE(share, layer);
        ForwardReport report;
        const Forwarded old_rows = forward(old_answers, layer, hidden),
                        new_rows = forward(new_answers, layer, hidden),
                        got = forward(model, layer, hidden,
                                      {.request_ids = ids.data(), .report = &report});
        INFO(got.status.message());
        REQUIRE(got.status.ok());
        int64_t tried = 0;
        for (size_t t = 0; t < kRows; ++t) {
          const bool candidate = share_point(ids[t]) < share;
          tried += candidate;
          const std::vector<float>& wanted = (candidate ? new_rows : old_rows).out;
          REQUIRE(std::memcmp(&got.out[t * 24], &wanted[t * 24], 24 * 4) == 0);
        }
        CHECK(report.candidate_rows == tried);
        // Rows without a request id are the old version's.
        const Forwarded plain = forward(model, layer, hidden);
        REQUIRE(plain.status.ok());
        CHECK(plain.out == old_rows.out);
      }
    };
    check(0);
    REQUIRE_OK(store.reload(worlds.newer(), {.share = 0.3}).status());
    check(0.3);
    CHECK(store.reload(worlds.newer()).status().code() == StatusCode::failed_precondition);
    REQUIRE_OK(store.set_share(0.8));
    check(0.8);
    REQUIRE_OK(store.set_share(0));
    check(0);
    REQUIRE_OK(store.set_share(0.5));
    REQUIRE_OK(store.rollback());  // the trial ends
    check(0);
    CHECK(store.set_share(0.5).code() == StatusCode::failed_precondition);
    CHECK(store.versions().size() == 1);

    REQUIRE_OK(store.reload(worlds.newer(), {.share = 0.5}).status());
    check(0.5);
    REQUIRE_OK(store.set_share(1));
    require_same(model, new_answers, hidden);
    REQUIRE_OK(store.rollback());
    require_same(model, old_answers, hidden);
  }
}

TEST_CASE("a forward is all old or all new while everything is reloaded in a loop",
          "[store][mission-95][mission-103][mission-137]") {
  Random random(test::seed());
  const Worlds worlds(random);
  Model old_answers = open(worlds.older()), new_answers = open(worlds.newer());
  for (const Memory memory : {Memory::ample, Memory::paged}) {
    for (const ReloadStep step : {ReloadStep::all, ReloadStep::layer}) {
      CAPTURE(static_cast<int>(memory), static_cast<int>(step));
      FaultyAllocator allocator;
      Model model = open(worlds.older(), options_for(memory, allocator));
      std::vector<Rows> inputs;
      std::vector<std::vector<float>> old_rows, new_rows;
      for (int i = 0; i < 6; ++i) {
        inputs.emplace_back(random, 1 + i * 3, 24, DType::f32);
        old_rows.push_back(forward(old_answers, i % 2, inputs.back()).out);
        new_rows.push_back(forward(new_answers, i % 2, inputs.back()).out);
      }
      std::atomic<bool> stop{false};
      std::atomic<int> failed{0}, mixed{0}, olds{0}, news{0};
      std::vector<std::thread> threads;
      for (int t = 0; t < 3; ++t)
        threads.emplace_back([&, t] {
          for (size_t i = static_cast<size_t>(t); !stop; ++i) {
            const size_t which = i % inputs.size();
            const Forwarded got = forward(model, static_cast<int32_t>(which % 2), inputs[which]);
            if (!got.status.ok())
              ++failed;
            else if (got.out == old_rows[which])
              ++olds;
            else if (got.out == new_rows[which])
              ++news;
            else
              ++mixed;
          }
        });
      while (olds + news + failed + mixed == 0) std::this_thread::yield();  // the load is there
      Status status;
      for (int i = 0; i < 6 && status.ok(); ++i) {
        const WeightSource& next = i % 2 == 0 ? worlds.newer() : worlds.older();
        status = model.store().reload(next, {.step = step}).status();
        if (status.ok() && i % 3 == 2) {
          status = model.store().rollback();
          if (status.ok()) status = model.store().rollback();
        }
      }
      stop = true;
      for (std::thread& thread : threads) thread.join();
      REQUIRE_OK(status);
      CHECK(failed == 0);
      CHECK(mixed == 0);
      CHECK(olds + news > 0);
    }
  }
}

TEST_CASE("expert by expert, each row is old or new", "[store][mission-105][mission-137]") {
  Random random(test::seed());
  const Worlds worlds(random);
  Model old_answers = open(worlds.older()), new_answers = open(worlds.newer());
  FaultyAllocator allocator;
  Model model = open(worlds.older(), options_for(Memory::tight, allocator));
  // One expert for each row: then a row that is neither old nor new is torn.
  constexpr int64_t kRows = 16;
  const Rows hidden(random, kRows, 24, DType::f32);
  std::vector<int32_t> ids(kRows);
  for (size_t t = 0; t < kRows; ++t) ids[t] = static_cast<int32_t>(t % 8);
  std::vector<float> weights(kRows, 0.5f);
  const Routing routing{kRows, 1, ids.data(), weights.data()};
  const ForwardOptions options{.top_k = 1, .routing_in = &routing, .skip_shared = true};
  const auto old_rows = forward(old_answers, 0, hidden, options).out,
             new_rows = forward(new_answers, 0, hidden, options).out;
  std::atomic<bool> stop{false};
  std::atomic<int> failed{0}, torn{0}, rows{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&] {
      while (!stop) {
        const Forwarded got = forward(model, 0, hidden, options);
        failed += !got.status.ok();
        for (size_t r = 0; got.status.ok() && r < kRows; ++r, ++rows)
          torn += std::memcmp(&got.out[r * 24], &old_rows[r * 24], 24 * 4) != 0 &&
                  std::memcmp(&got.out[r * 24], &new_rows[r * 24], 24 * 4) != 0;
      }
    });
  while (rows + failed + torn == 0) std::this_thread::yield();  // the load is there
  Status status;
  for (int i = 0; i < 6 && status.ok(); ++i)
    status = model.store()
                 .reload(i % 2 == 0 ? worlds.newer() : worlds.older(), {.step = ReloadStep::expert})
                 .status();
  stop = true;
  for (std::thread& thread : threads) thread.join();
  REQUIRE_OK(status);
  CHECK(failed == 0);
  CHECK(torn == 0);
  CHECK(rows > 0);
}
