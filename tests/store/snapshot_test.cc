// Saved and restored stores: after a restart everything goes on as if there had been none, and
// whatever is wrong with a snapshot is told before anything has changed.
#include "moe/snapshot.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/snapshot_file.h"
#include "store/store_faults.h"
#include "store/store_impl.h"
#include "temporary_directory.h"

using namespace moe;
using namespace moe::test;

namespace {

constexpr int32_t kExperts = 12;

std::vector<LayerSpec> layers() {
  return {small_layer(0, kExperts), small_layer(2, kExperts), small_layer(3, kExperts)};
}
const std::vector<int32_t> kLayers = {0, 2, 3};

Model open(const WeightSource& source, const ModelOptions& options = {}) {
  auto model = Model::create(source, options);
  INFO(model.status().message());
  REQUIRE(model.ok());
  return *std::move(model);
}

// Every copy that serves: version and digest, not its slot.
std::string copies_of(const ExpertStore& store) {
  std::ostringstream text;
  for (const LayerSpec& spec : store.layers())
    for (int32_t e = kSharedExpert; e < spec.router.num_experts; ++e) {
      auto copies = *store.copies(spec.layer, e);
      std::sort(copies.begin(), copies.end(),
                [](const auto& a, const auto& b) { return a.version < b.version; });
      for (const ExpertCopyInfo& copy : copies)
        if (copy.serving)
          text << spec.layer << '.' << e << " v" << copy.version << ' ' << copy.digest << '\n';
    }
  return text.str();
}

std::string versions_of(const ExpertStore& store) {
  std::ostringstream text;
  for (const VersionInfo& v : store.versions())
    text << v.version << ' ' << v.source << ' ' << v.serving << ' ' << v.candidate << ' ' << v.kept
         << '\n';
  return text.str();
}

// The same forward of both: equal bytes, and with `paging` equal hits, misses, victims.
void require_same_step(Model& a, Model& b, int32_t layer, const Rows& hidden,
                       const ForwardOptions& options, bool paging) {
  const auto counted = [](Model& model, const std::function<void()>& step) {
    const PagingStats before = model.store().stats().paging;
    step();
    const PagingStats after = model.store().stats().paging;
    return std::vector<int64_t>{after.hits - before.hits, after.misses - before.misses,
                                after.evictions - before.evictions};
  };
  Forwarded from_a, from_b;
  const auto did_a = counted(a, [&] { from_a = forward(a, layer, hidden, options); });
  const auto did_b = counted(b, [&] { from_b = forward(b, layer, hidden, options); });
  REQUIRE_OK(from_a.status);
  REQUIRE_OK(from_b.status);
  REQUIRE(from_a.out == from_b.out);
  if (!paging) return;
  REQUIRE(did_a == did_b);
  REQUIRE(copies_of(a.store()) == copies_of(b.store()));
}

// `steps` forwards of random rows through random layers; both models the same.
void go_on(Random& random, int steps, const std::function<void(int32_t, const Rows&)>& step,
           const std::function<void()>& sequence_ended) {
  for (int i = 0; i < steps; ++i) {
    const Rows hidden(random, random.one_of({1, 1, 2, 7}), 24, DType::f32);
    step(kLayers[static_cast<size_t>(i) % kLayers.size()], hidden);
    if (random.chance(0.05)) sequence_ended();
  }
}

std::string bytes_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

}  // namespace

TEST_CASE("a restored store goes on as if it had not been restarted",
          "[store][mission-108][mission-86]") {
  Random random(test::seed());
  const RandomModel weights(layers(), random);
  const TemporaryDirectory folder;
  const std::string path = folder / "state";
  for (const EvictionPolicyRow& row : eviction_policy_rows()) {
    for (const int64_t slots : {1, 4, 11, 25}) {
      CAPTURE(row.name, slots);
      FaultyAllocator memory;
      ModelOptions options;
      options.host.memory = &memory;
      options.expert_memory = memory_for(slots, 3);
      options.eviction = row.name;
      Model model = open(weights.source(), options);
      go_on(
          random, 60,
          [&](int32_t layer, const Rows& hidden) {
            REQUIRE_OK(forward(model, layer, hidden).status);
          },
          [&] { model.store().sequence_ended(); });
      REQUIRE_OK(save_snapshot(model.store(), path));

      options.restore.snapshot = path;
      Model restored = open(weights.source(), options);
      CHECK(copies_of(restored.store()) == copies_of(model.store()));
      CHECK(restored.store().impl()->snapshot().value() ==
            model.store().impl()->snapshot().value());
      go_on(
          random, 60,
          [&](int32_t layer, const Rows& hidden) {
            require_same_step(model, restored, layer, hidden, {}, true);
          },
          [&] { model.store().sequence_ended(), restored.store().sequence_ended(); });
      CHECK(restored.store().stats().paging.load_errors == 0);
    }
  }
}

TEST_CASE("versions, a version on trial and the way back survive a restart",
          "[store][mission-108][mission-103][mission-104][mission-105]") {
  Random random(test::seed());
  const RandomModel first(layers(), random), second(layers(), random), third(layers(), random);
  const TemporaryDirectory folder;
  const std::string path = folder / "state";
  for (const int64_t slots : {0, 9}) {
    for (const bool trial : {false, true}) {
      CAPTURE(slots, trial);
      FaultyAllocator memory;
      ModelOptions options;
      options.host.memory = &memory;
      options.expert_memory = slots > 0 ? memory_for(slots, 6) : 0;
      Model model = open(first.source(), options);
      const std::vector<ExpertId> some = {{0, 1}, {0, 7}, {2, 3}, {2, kSharedExpert}};
      REQUIRE(model.store().reload(second.source(), {.experts = some}).ok());
      REQUIRE_OK(model.store().forget_previous());
      const auto newest = model.store().reload(
          third.source(),
          {.experts = {{2, 5}, {3, 0}, {3, kSharedExpert}}, .share = trial ? 0.4 : 1});
      REQUIRE_OK(newest.status());
      std::vector<uint64_t> requests(16);
      for (uint64_t& id : requests) id = static_cast<uint64_t>(random.between(0, 1 << 30));
      const ForwardOptions asked{.request_ids = requests.data()};
      const bool paging = slots > 0;
      go_on(
          random, 30,
          [&](int32_t layer, const Rows& hidden) {
            REQUIRE_OK(forward(model, layer, hidden, asked).status);
          },
          [] {});
      REQUIRE_OK(save_snapshot(model.store(), path));

      const auto wanted = snapshot_versions(path);
      REQUIRE_OK(wanted.status());
      REQUIRE(wanted->size() == 3);
      CHECK((*wanted)[2].version == *newest);
      options.restore.snapshot = path;
      options.restore.sources = {{2, &second.source()}, {*newest, &third.source()}};
      Model restored = open(first.source(), options);
      CHECK(versions_of(restored.store()) == versions_of(model.store()));
      const auto same = [&](int steps) {
        go_on(
            random, steps,
            [&](int32_t layer, const Rows& hidden) {
              require_same_step(model, restored, layer, hidden, asked, paging);
            },
            [] {});
      };
      same(40);
      if (trial) {
        REQUIRE_OK(model.store().set_share(0.8));
        REQUIRE_OK(restored.store().set_share(0.8));
        same(20);
        REQUIRE_OK(model.store().set_share(1));
        REQUIRE_OK(restored.store().set_share(1));
        same(20);
      }
      REQUIRE_OK(model.store().rollback());
      REQUIRE_OK(restored.store().rollback());
      CHECK(versions_of(restored.store()) == versions_of(model.store()));
      same(40);
      // Numbers of versions go on.
      const ReloadOptions by_layer{.step = ReloadStep::layer};
      const auto next = model.store().reload(second.source(), by_layer),
                 theirs = restored.store().reload(second.source(), by_layer);
      REQUIRE_OK(next.status());
      REQUIRE_OK(theirs.status());
      CHECK(*next == *theirs);
      same(20);
    }
  }
}

TEST_CASE("a model that was replaced as a whole is opened with its new weights alone",
          "[store][mission-108]") {
  Random random(test::seed());
  const RandomModel first(layers(), random), second(layers(), random);
  const TemporaryDirectory folder;
  Model model = open(first.source());
  REQUIRE(model.store().reload(second.source(), {}).ok());
  REQUIRE_OK(model.store().forget_previous());
  REQUIRE_OK(save_snapshot(model.store(), folder / "state"));
  ModelOptions options;
  options.restore.snapshot = folder / "state";
  Model restored = open(second.source(), options);
  CHECK(versions_of(restored.store()) == versions_of(model.store()));
  const Rows hidden(random, 9, 24, DType::f32);
  for (const int32_t layer : kLayers) require_same_step(model, restored, layer, hidden, {}, false);
}

TEST_CASE("with other memory a restored store keeps whom its policy would keep",
          "[store][mission-108][mission-89]") {
  Random random(test::seed());
  const RandomModel weights(layers(), random);
  const TemporaryDirectory folder;
  Model answers = open(weights.source());
  FaultyAllocator memory;
  ModelOptions options;
  options.host.memory = &memory;
  options.expert_memory = memory_for(20, 3);
  options.eviction = "lfu";
  Model model = open(weights.source(), options);
  const Rows hidden(random, 24, 24, DType::f32);
  for (int round = 0; round < 3; ++round)
    for (const int32_t layer : kLayers) REQUIRE_OK(forward(model, layer, hidden).status);
  REQUIRE_OK(save_snapshot(model.store(), folder / "state"));
  options.restore.snapshot = folder / "state";
  for (const int64_t slots : {1, 7, 30, 100}) {
    CAPTURE(slots);
    options.expert_memory = memory_for(slots, 3);
    Model restored = open(weights.source(), options);
    const int64_t most = std::min<int64_t>(slots, 3 * kExperts);
    CHECK(restored.store().stats().ready == (slots < 36 ? std::min<int64_t>(most, 20) : most));
    if (slots < 20) {  // as if the budget had shrunk
      REQUIRE_OK(model.store().set_expert_memory(options.expert_memory));
      CHECK(copies_of(restored.store()) == copies_of(model.store()));
      REQUIRE_OK(model.store().set_expert_memory(memory_for(20, 3)));
      for (int round = 0; round < 3; ++round)
        for (const int32_t layer : kLayers) REQUIRE_OK(forward(model, layer, hidden).status);
      REQUIRE_OK(save_snapshot(model.store(), folder / "state"));
    }
    for (const int32_t layer : kLayers)
      require_same_step(answers, restored, layer, hidden, {}, false);
  }
}

TEST_CASE("a snapshot that does not fit is refused with a code, and nothing is changed",
          "[store][mission-108][mission-93]") {
  Random random(test::seed());
  const RandomModel weights(layers(), random), others(layers(), random);
  std::vector<LayerSpec> fewer = layers(), larger = layers();
  fewer.pop_back();
  for (LayerSpec& spec : larger) spec.expert.intermediate += 8;
  const RandomModel less(fewer, random), more(larger, random);
  const TemporaryDirectory folder;
  const std::string path = folder / "state";
  FaultyAllocator memory;
  ModelOptions options;
  options.expert_memory = memory_for(9, 6);
  options.host.memory = &memory;
  {
    Model model = open(weights.source(), options);
    REQUIRE(model.store().reload(others.source(), {.experts = {{0, 3}, {2, 1}}}).ok());
    const Rows hidden(random, 24, 24, DType::f32);
    for (const int32_t layer : kLayers) REQUIRE_OK(forward(model, layer, hidden).status);
    std::vector<int32_t> ids(48, 3);  // so that one of version 2 is resident
    std::vector<float> even(48, 0.5f);
    const Routing routing{24, 2, ids.data(), even.data()};
    REQUIRE_OK(forward(model, 0, hidden, {.routing_in = &routing}).status);
    REQUIRE_OK(save_snapshot(model.store(), path));
  }
  const std::string whole = bytes_of(path);
  const auto refused = [&](const WeightSource& source, const ModelOptions& with) {
    const auto model = Model::create(source, with);
    REQUIRE_FALSE(model.ok());
    INFO(model.status().message());
    CHECK(memory.outstanding == 0);
    CHECK_FALSE(model.status().message().empty());
    CHECK_FALSE(model.status().place().file.empty());
    return model.status().code();
  };
  options.restore = {path, {{2, &others.source()}}};
  (void)open(weights.source(), options);
  CHECK(refused(others.source(), options) == StatusCode::data_loss);  // other weights
  CHECK(refused(less.source(), options) == StatusCode::failed_precondition);
  CHECK(refused(more.source(), options) == StatusCode::failed_precondition);
  ModelOptions with = options;
  with.eviction = "lfu";
  CHECK(refused(weights.source(), with) == StatusCode::failed_precondition);
  with = options;
  with.format = Format{FormatKind::bf16, 0};
  CHECK(refused(weights.source(), with) == StatusCode::failed_precondition);
  with = options;
  with.restore.sources.clear();
  CHECK(refused(weights.source(), with) == StatusCode::not_found);
  with.restore.sources = {{2, &less.source()}};
  CHECK(refused(weights.source(), with) == StatusCode::invalid_argument);
  with.restore.sources = {{2, &weights.source()}};  // the wrong one
  CHECK(refused(weights.source(), with) == StatusCode::data_loss);
  with.restore.snapshot = folder / "no such";
  CHECK(refused(weights.source(), with) == StatusCode::not_found);

  const auto code_of = [&](const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    return refused(weights.source(), options);
  };
  for (size_t size = 0; size < whole.size(); size += 1 + whole.size() / 40)
    CHECK((code_of(whole.substr(0, size)) == StatusCode::data_loss || size < 21));
  for (int i = 0; i < 40; ++i) {
    std::string flipped = whole;
    const auto at =
        static_cast<size_t>(random.between(23, static_cast<int64_t>(whole.size()) - 40));
    flipped[at] = static_cast<char>(flipped[at] ^ (1 << random.between(0, 7)));
    CHECK(code_of(flipped) == StatusCode::data_loss);
  }
  std::string later = whole;
  later.replace(later.find("moe-store-1"), 11, "moe-store-2");
  CHECK(code_of(later) == StatusCode::unimplemented);

  // Whole, with its digest, but such as no store writes.
  std::ofstream(path, std::ios::binary | std::ios::trunc) << whole;
  const StoreSnapshot good = *read_snapshot(path);
  const std::vector<std::function<void(StoreSnapshot&)>> damages = {
      [](StoreSnapshot& s) { s.versions.pop_back(); },
      [](StoreSnapshot& s) { s.versions[1].version = 1; },
      [](StoreSnapshot& s) { s.newest = 1; },
      [](StoreSnapshot& s) { s.share = -0.5; },
      [](StoreSnapshot& s) { s.experts[0].id.layer = 1; },
      [](StoreSnapshot& s) { s.experts[0].id.expert = kExperts; },
      [](StoreSnapshot& s) { s.experts[0].version = 7; },
      [](StoreSnapshot& s) { s.experts.push_back(s.experts[0]); },
      [](StoreSnapshot& s) { s.layers[1].serving.experts[4] = 9; },
      [](StoreSnapshot& s) { s.layers[1].serving.experts.pop_back(); },
      [](StoreSnapshot& s) {
        s.layers[2].previous = StoreSnapshot::Table{5, 0, {}};
      },
      [](StoreSnapshot& s) { s.layers[0].uses.clear(); },
      [](StoreSnapshot& s) { s.layers.clear(); },
      [](StoreSnapshot& s) { s.policies.clear(); },
      [](StoreSnapshot& s) { s.policies[0].memory.parts.pop_back(); },
      [](StoreSnapshot& s) { s.policies[0].memory.parts[0].values[0] = 99; },
  };
  for (size_t i = 0; i < damages.size(); ++i) {
    CAPTURE(i);
    StoreSnapshot bad = good;
    damages[i](bad);
    REQUIRE_OK(write_snapshot(bad, path));
    const StatusCode code = refused(weights.source(), options);
    CHECK((code == StatusCode::invalid_argument || code == StatusCode::failed_precondition));
  }
  REQUIRE_OK(write_snapshot(good, path));
  (void)open(weights.source(), options);
}

TEST_CASE(
    "the n-th read or allocation of a restoring store fails: a status, no leak, the next one "
    "works",
    "[store][mission-108][mission-93]") {
  Random random(test::seed());
  const RandomModel weights(layers(), random);
  const TemporaryDirectory folder;
  FaultyAllocator memory;
  ModelOptions options;
  options.expert_memory = memory_for(9, 3);
  options.host.memory = &memory;
  {
    Model model = open(weights.source(), options);
    const Rows hidden(random, 24, 24, DType::f32);
    for (const int32_t layer : kLayers) REQUIRE_OK(forward(model, layer, hidden).status);
    REQUIRE_OK(save_snapshot(model.store(), folder / "state"));
  }
  const std::string whole = bytes_of(folder / "state");
  options.restore.snapshot = folder / "state";
  FaultySource source(weights.source());
  int failed = 0;
  for (const bool reads : {true, false}) {
    for (int64_t nth = 0;; ++nth) {
      source.calls = 0, memory.calls = 0;
      source.fail_at = reads ? nth : -1;
      memory.fail_at = reads ? -1 : nth;
      const auto model = Model::create(source, options);
      if (model.ok()) break;
      CAPTURE(reads, nth, model.status().message());
      CHECK(model.status().code() ==
            (reads ? StatusCode::data_loss : StatusCode::resource_exhausted));
      CHECK(memory.outstanding == 0);
      ++failed;
    }
  }
  CHECK(failed > 30);
  CHECK(bytes_of(folder / "state") == whole);
}

TEST_CASE("a process that is killed while it saves leaves the old snapshot or the new one",
          "[store][mission-108]") {
#if defined(__SANITIZE_THREAD__)
  return skip("ThreadSanitizer allows no threads after a fork");
#endif
  Random random(test::seed());
  const RandomModel weights(layers(), random);
  const TemporaryDirectory folder;
  const std::string path = folder / "state";
  ModelOptions options;
  options.expert_memory = memory_for(9, 3);
  {
    Model model = open(weights.source(), options);
    REQUIRE_OK(save_snapshot(model.store(), path));
  }
  Model answers = open(weights.source());
  int64_t saved = 0;
  for (int round = 0; round < 20; ++round) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {  // saves after each forward until it is killed; tells of each by one byte
      const auto executor = make_executor(1);  // threads of the parent's are not here
      ModelOptions mine = options;
      mine.host.executor = executor->get();
      mine.restore.snapshot = path;
      auto model = Model::create(weights.source(), mine);
      for (int32_t i = 0; model.ok(); ++i) {
        const Rows hidden(random, 2, 24, DType::f32);
        std::vector<float> out(48);
        const bool done = model
                              ->forward(kLayers[static_cast<size_t>(i % 3)], hidden.view(),
                                        {out.data(), DType::f32, hidden.shape})
                              .ok() &&
                          save_snapshot(model->store(), path).ok() && ::write(ends[1], "s", 1) == 1;
        if (!done) break;
      }
      ::_exit(1);
    }
    ::close(ends[1]);
    char told;
    REQUIRE(::read(ends[0], &told, 1) == 1);
    std::this_thread::sleep_for(std::chrono::microseconds(random.between(0, 20'000)));
    REQUIRE(::kill(child, SIGKILL) == 0);
    int state = 0;
    REQUIRE(::waitpid(child, &state, 0) == child);
    REQUIRE(WIFSIGNALED(state));
    for (++saved; ::read(ends[0], &told, 1) == 1;) ++saved;
    ::close(ends[0]);

    ModelOptions again = options;
    again.restore.snapshot = path;
    Model restored = open(weights.source(), again);
    const auto left = read_snapshot(path);
    REQUIRE_OK(left.status());
    int64_t visits = 0;
    for (const StoreSnapshot::Layer& layer : left->layers)
      for (const int64_t uses : layer.uses) visits += uses;
    CHECK(visits > 0);
    const Rows hidden(random, 5, 24, DType::f32);
    for (const int32_t layer : kLayers)
      require_same_step(answers, restored, layer, hidden, {}, false);
  }
  CHECK(saved > 20);
}

TEST_CASE("every snapshot that is taken while forwards, reloads and budgets move restores",
          "[store][mission-108][mission-137]") {
  Random random(test::seed());
  const RandomModel first(layers(), random), second(layers(), random);
  const TemporaryDirectory folder;
  ModelOptions options;
  options.expert_memory = memory_for(9, 6);
  Model model = open(first.source(), options);
  std::vector<size_t> budgets;
  for (int64_t slots = 8; slots < 12; ++slots) budgets.push_back(memory_for(slots, 6));
  std::atomic<bool> stop{false};
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t)
    threads.emplace_back([&, seed = test::seed() + 1 + static_cast<uint64_t>(t)] {
      Random own(seed);
      while (!stop) {
        const Rows hidden(own, own.one_of({1, 4}), 24, DType::f32);
        std::vector<float> out(hidden.bytes.size() / 4 + 1);
        failed += !model
                       .forward(kLayers[static_cast<size_t>(own.between(0, 2))], hidden.view(),
                                {out.data(), DType::f32, hidden.shape})
                       .ok();
      }
    });
  threads.emplace_back([&] {
    for (int i = 0; !stop; ++i) {
      failed += !model.store()
                     .reload(i % 2 ? first.source() : second.source(),
                             {.experts = {{0, i % kExperts}, {3, kSharedExpert}},
                              .step = ReloadStep::expert})
                     .ok();
      failed += !model.store().set_expert_memory(budgets[static_cast<size_t>(i % 4)]).ok();
    }
  });
  for (int i = 0; i < 25; ++i) {
    CAPTURE(i);
    const std::string path = folder / ("state" + std::to_string(i));
    const Status saved = save_snapshot(model.store(), path);
    const auto versions = snapshot_versions(path);
    ModelOptions again = options;
    again.restore.snapshot = path;
    for (const SnapshotVersion& v : *versions)
      again.restore.sources.push_back(
          {v.version, v.version % 2 ? &first.source() : &second.source()});
    const auto restored = Model::create(first.source(), again);
    const bool ok = saved.ok() && restored.ok();
    if (!ok) stop = true;
    if (!ok)
      for (std::thread& thread : threads) thread.join();
    INFO(saved.message() << restored.status().message());
    REQUIRE(ok);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(failed == 0);
}
