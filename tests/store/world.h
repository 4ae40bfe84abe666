// A small store that pages, two sets of weights for it, and what each of them computes: what
// interleavings are checked against.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"
#include "model/random_model.h"
#include "moe/model.h"
#include "store/explorer.h"
#include "store/store_faults.h"
#include "store/store_impl.h"

namespace moe::test {

constexpr int64_t kHidden = 20;

inline LayerSpec small_layer(int32_t layer, int32_t experts, bool shared) {
  LayerSpec spec;
  spec.layer = layer;
  spec.router.num_experts = experts;
  spec.router.top_k = 1;
  spec.expert = {.hidden = kHidden, .intermediate = 13};
  spec.expert.format = {FormatKind::f32, 0};
  if (shared) {
    spec.shared.emplace();
    spec.shared->expert = spec.expert;
    spec.shared->expert.intermediate = 7;
  }
  return spec;
}

// Reads can fail, and others may come between the reads of one expert.
class TroubledSource final : public WeightSource {
 public:
  explicit TroubledSource(const WeightSource& inner) : inner_(inner) {}
  const std::vector<LayerSpec>& layers() const noexcept override { return inner_.layers(); }
  Result<TensorShape> describe(const WeightId& id) const override { return inner_.describe(id); }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    if (schedule) schedule->point("read");
    for (int left = failures; left > 0;)
      if (failures.compare_exchange_weak(left, left - 1)) {
        ++failed;
        return Status(StatusCode::data_loss, "injected read error", {.tensor = to_string(id.kind)});
      }
    return inner_.read(id, out);
  }
  std::string_view name() const noexcept override { return "troubled"; }

  mutable std::atomic<int> failures{0};  // of the next reads
  mutable std::atomic<int64_t> failed{0};
  Schedule* schedule = nullptr;

 private:
  const WeightSource& inner_;
};

// Slots' memory; the next `failures` requests find none.
class TroubledMemory final : public Allocator {
 public:
  void* allocate(size_t bytes, size_t alignment) noexcept override {
    for (int left = failures; left > 0;)
      if (failures.compare_exchange_weak(left, left - 1)) return ++refused, nullptr;
    outstanding += static_cast<int64_t>(bytes);
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  }
  void deallocate(void* memory, size_t bytes, size_t) noexcept override {
    outstanding -= static_cast<int64_t>(bytes);
    std::free(memory);
  }
  std::atomic<int> failures{0};
  std::atomic<int64_t> refused{0}, outstanding{0};
};

// Stands, until somebody moves it past every deadline.
class SteppingClock final : public Clock {
 public:
  int64_t now_ns() const noexcept override { return now_; }
  void step() { now_ += 3'600'000'000'000; }

 private:
  std::atomic<int64_t> now_{0};
};

// Passes everything on, and lets others come in between two experts of one batch.
class SteppingGemm final : public ExpertGemm {
 public:
  explicit SteppingGemm(std::unique_ptr<ExpertGemm> inner) : inner_(std::move(inner)) {}
  const char* name() const noexcept override { return inner_->name(); }
  Status supports(const ExpertSpec& spec) const override { return inner_->supports(spec); }
  SlotLayout layout(const ExpertSpec& spec) const override { return inner_->layout(spec); }
  Status pack(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
              std::byte* slot) const override {
    return inner_->pack(spec, source, layer, expert, slot);
  }
  size_t workspace_bytes(const ExpertSpec& spec, int64_t pairs, int64_t groups,
                         int concurrency) const noexcept override {
    return inner_->workspace_bytes(spec, pairs, groups, concurrency);
  }
  Status run(const ExpertSpec& spec, const ExpertBatch& batch) const override {
    for (size_t g = 0; g < batch.groups.size(); ++g) {
      if (schedule) schedule->point("expert");
      ExpertBatch one = batch;
      one.groups = batch.groups.subspan(g, 1);
      MOE_RETURN_IF_ERROR(inner_->run(spec, one));
    }
    return {};
  }
  Schedule* schedule = nullptr;

 private:
  std::unique_ptr<ExpertGemm> inner_;
};

class CallingThread final : public Executor {
 public:
  int concurrency() const noexcept override { return 1; }
  void run(int64_t tasks, Task task, void* argument) noexcept override {
    for (int64_t i = 0; i < tasks; ++i) task(argument, i, 0);
  }
};

// What hosts and faults do.
struct Op {
  enum Kind { forward, reload, rollback, budget, scrub, fail_read, fail_memory, late };
  static constexpr int kKinds = late + 1;
  Kind kind = forward;
  int32_t layer = 0;
  std::vector<int32_t> experts;  // of a forward, one row each
  int weights = 0;               // that a reload brings
  ReloadStep step = ReloadStep::all;
  int64_t slots = 1;  // of a budget
};
using Script = std::vector<std::vector<Op>>;  // by task

inline bool has(const Script& script, Op::Kind kind) {
  for (const auto& task : script)
    for (const Op& op : task)
      if (op.kind == kind) return true;
  return false;
}

// Two sets of weights of one shape, and the outputs of a model that never changes, for each.
class World {
 public:
  World(uint64_t seed, int32_t layers, int32_t experts, bool shared)
      : layers_(layers),
        experts_(experts),
        random_(seed),
        first_(specs(layers, experts, shared), random_),
        second_(specs(layers, experts, shared), random_),
        row_(random_, 1, kHidden, DType::f32) {
    auto gemm = make_expert_gemm({}, small_layer(0, experts, false).expert);
    REQUIRE(gemm.ok());
    const ExpertSpec& expert = small_layer(0, experts, false).expert;
    stride_ = ((*gemm)->layout(expert).bytes + 63) / 64 * 64;
    if (shared)
      shared_stride_ =
          ((*gemm)->layout(small_layer(0, experts, true).shared->expert).bytes + 63) / 64 * 64;
    find_padding(**gemm, expert);
    std::vector<ExpertId> blocks;
    for (int32_t layer = 0; layer < layers; ++layer) blocks.push_back({layer, kSharedExpert});
    for (int w = 0; w < 2; ++w) {
      const MixedSource mixed(weights(w), weights(1 - w), blocks);
      remember(weights(w), outputs_[w][w]);
      remember(mixed, outputs_[w][1 - w]);
    }
  }

  const WeightSource& weights(int w) const { return w == 0 ? first_.source() : second_.source(); }
  int32_t layers() const { return layers_; }
  int32_t experts() const { return experts_; }
  size_t memory_for(int64_t slots) const {
    return static_cast<size_t>(slots + kSpareSlots) * stride_ +
           static_cast<size_t>(layers_) * shared_stride_;
  }
  // A byte of every routed slot that no output depends on.
  size_t padding() const { return padding_; }

  // One row for each of `experts`.
  Status forward(Model& model, Context* context, int32_t layer, std::span<const int32_t> experts,
                 float* out) const {
    const auto rows = static_cast<int64_t>(experts.size());
    std::vector<int32_t> ids(experts.begin(), experts.end());
    std::vector<float> ones(ids.size(), 1.0f);
    const Routing routing{rows, 1, ids.data(), ones.data()};
    ForwardOptions options;
    options.routing_in = &routing;
    std::vector<float> hidden;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < kHidden; ++i) hidden.push_back(row_.at(0, i));
    const TensorView from(hidden.data(), DType::f32, {rows, kHidden});
    const MutableTensorView to(out, DType::f32, {rows, kHidden});
    return context ? model.forward(*context, layer, from, to, options)
                   : model.forward(layer, from, to, options);
  }

  // Whether `out` is what all of `experts` make with weights `w`.
  bool equals(int w, int32_t layer, std::span<const int32_t> experts, const float* out) const {
    for (size_t r = 0; r < experts.size(); ++r)
      if (!equals(w, w, layer, experts[r], out + r * kHidden)) return false;
    return true;
  }
  // Whether every routed and shared expert is of one of both, each whole.
  bool mixes(int32_t layer, std::span<const int32_t> experts, const float* out) const {
    for (size_t r = 0; r < experts.size(); ++r) {
      const auto is = [&](int w, int b) {
        return equals(w, b, layer, experts[r], out + r * kHidden);
      };
      if (!is(0, 0) && !is(0, 1) && !is(1, 0) && !is(1, 1)) return false;
    }
    return true;
  }

 private:
  void remember(const WeightSource& source, std::vector<std::vector<float>>& outputs) const {
    auto model = Model::create(source);
    REQUIRE(model.ok());
    for (int32_t layer = 0; layer < layers_; ++layer)
      for (int32_t e = 0; e < experts_; ++e) {
        outputs.emplace_back(kHidden);
        REQUIRE(forward(*model, nullptr, layer, {&e, 1}, outputs.back().data()).ok());
      }
  }
  // One row, of a routed expert of weights `w` and a shared one of `block`.
  bool equals(int w, int block, int32_t layer, int32_t expert, const float* out) const {
    const auto& wanted = outputs_[w][block][static_cast<size_t>(layer * experts_ + expert)];
    return std::memcmp(wanted.data(), out, sizeof(float) * kHidden) == 0;
  }
  static std::vector<LayerSpec> specs(int32_t layers, int32_t experts, bool shared) {
    std::vector<LayerSpec> all;
    for (int32_t layer = 0; layer < layers; ++layer)
      all.push_back(small_layer(layer, experts, shared));
    return all;
  }

  // Random weights are never 0: a word that is 0 in two experts is padding.
  void find_padding(const ExpertGemm& gemm, const ExpertSpec& expert) {
    const size_t bytes = gemm.layout(expert).bytes;
    std::vector<std::byte> slots[2] = {std::vector<std::byte>(bytes),
                                       std::vector<std::byte>(bytes)};
    for (int32_t e = 0; e < 2; ++e)
      REQUIRE(gemm.pack(expert, first_.source(), 0, e, slots[e].data()).ok());
    for (size_t at = 0; at + 4 <= bytes; at += 4) {
      constexpr std::byte kZero[4] = {};
      if (std::memcmp(slots[0].data() + at, kZero, 4) == 0 &&
          std::memcmp(slots[1].data() + at, kZero, 4) == 0) {
        padding_ = at;
        return;
      }
    }
    FAIL("the layout has no padding; choose another shape");
  }

  int32_t layers_, experts_;
  Random random_;
  RandomModel first_, second_;
  Rows row_;
  size_t stride_ = 0, shared_stride_ = 0, padding_ = 0;
  // Of one row, by the weights of the routed experts, by those of the shared one; layer and expert.
  std::vector<std::vector<float>> outputs_[2][2];
};

// One store under a script: runs ops, from any thread, and notes what they did wrong.
class Subject {
 public:
  // `schedule` null: real threads.
  Subject(const World& world, int64_t slots, Schedule* schedule,
          PrefetchKind prefetch = PrefetchKind::none)
      : world_(world),
        sources_{TroubledSource(world.weights(0)), TroubledSource(world.weights(1))},
        gemm_(*make_expert_gemm({}, small_layer(0, 1, false).expert)),
        scheduled_(schedule != nullptr) {
    gemm_.schedule = sources_[0].schedule = sources_[1].schedule = schedule;
    ExpertStoreOptions options;
    options.expert_memory = world.memory_for(slots);
    options.prefetch = prefetch;
    options.expert_gemm = &gemm_;
    options.io_threads = 2;
    options.host = {.memory = &memory_, .executor = &executor_};
    if (schedule) options.host.clock = &clock_;
    auto store = ExpertStore::Impl::open_scheduled(sources_[0], options, schedule);
    INFO(store.status().message());
    REQUIRE(store.ok());
    store_.emplace(*std::move(store));
    auto model = Model::create(*store_, {.host = options.host});
    REQUIRE(model.ok());
    model_.emplace(*std::move(model));
  }

  // A context for a task.
  Context context() {
    auto made = Context::create(*model_);
    REQUIRE(made.ok());
    return *std::move(made);
  }

  // Does one task's ops, in order.
  void play(const std::vector<Op>& ops, Context& context) {
    for (const Op& op : ops) play(op, context);
  }

  // Call when nothing else goes on: every expert is there, whole and right, and nothing is left
  // over.
  void finish() {
    for (auto& source : sources_) source.failures = 0;
    memory_.failures = 0;
    auto context = Context::create(*model_);
    if (!context.ok()) return note("no context at the end");
    std::vector<float> out(static_cast<size_t>(world_.experts() * kHidden));
    for (int32_t layer = 0; layer < world_.layers(); ++layer) {
      std::vector<int32_t> all;
      for (int32_t e = 0; e < world_.experts(); ++e) all.push_back(e);
      const Status status = world_.forward(*model_, &*context, layer, all, out.data());
      if (!status.ok())
        note("an expert is lost: " + std::string(status.message()));
      else if (!world_.equals(current_, layer, all, out.data()) &&
               !(late_ && world_.mixes(layer, all, out.data())))
        note("wrong at the end");
    }
    check("the end of rollback()", store_->forget_previous());  // late copies find their places
    const auto report = store_->scrub();
    if (!report.ok() || report->found != report->repaired) note("a damaged slot stays");
    const ExpertStoreStats stats = store_->stats();
    if (stats.moving_bytes > 0) note("a copy is still moving");
    if (stats.ready > stats.capacity) note("more experts than slots");
    ExpertStore::Impl& impl = *store_->impl();
    if (scheduled_ && impl.loads_in_flight != 0) note("a load is counted for ever");
    for (const SlotClass& slots : impl.classes) {
      int64_t routed = 0;
      for (const ExpertCopy& copy : slots.copies) {
        if (copy.leases != 0) note("a lease is left");
        routed += copy.state == CopyState::ready && copy.expert != kSharedExpert;
      }
      if (slots.residency && slots.residency->used() != routed)
        note("slots are counted wrong: " + std::to_string(slots.residency->used()) + " of " +
             std::to_string(routed));
    }
  }

  std::string wrong() const {
    std::lock_guard lock(mutex_);
    return wrong_;
  }
  ExpertStoreStats stats() const { return store_->stats(); }
  ExpertStore::Impl& store() { return *store_->impl(); }
  const TroubledMemory& memory() const { return memory_; }
  int64_t failed_reads() const { return sources_[0].failed + sources_[1].failed; }
  int64_t done(Op::Kind kind) const { return done_[kind]; }  // ops that ended well
  void allow_faults(const Script& script) {
    read_faults_ = has(script, Op::fail_read);
    memory_faults_ = has(script, Op::fail_memory);
    // Where a budget holds one version of everything but not two, returning is done by pieces.
    // So does a return that has no time left, for some layers or experts.
    late_ = has(script, Op::late);
    by_pieces_ = late_ || has(script, Op::budget);
  }

 private:
  void note(const std::string& what) {
    std::lock_guard lock(mutex_);
    wrong_ += what + "; ";
  }
  // Of the op `kind` that has ended.
  void check(Op::Kind kind, const char* what, const Status& status) {
    done_[kind] += status.ok();
    check(what, status);
  }
  void check(const char* what, const Status& status) {
    if (status.ok() || (status.code() == StatusCode::data_loss && read_faults_) ||
        (status.code() == StatusCode::resource_exhausted && memory_faults_) ||
        (status.code() == StatusCode::deadline_exceeded && late_))
      return;
    note(std::string(what) + " failed: " + std::string(status.message()));
  }

  // Which weights may serve now.
  unsigned possible() const { return changing_ > 0 || late_ ? 3u : 1u << current_; }

  void play(const Op& op, Context& context) {
    switch (op.kind) {
      case Op::forward: return play_forward(op, context);
      case Op::reload: return change([&] { return play_reload(op); });
      case Op::rollback: return change([&] { return play_rollback(); });
      case Op::budget:
        return check(Op::budget, "a budget change",
                     store_->set_expert_memory(world_.memory_for(op.slots)));
      case Op::scrub: return play_scrub();
      case Op::fail_read: sources_[0].failures = sources_[1].failures = 1; return;
      case Op::fail_memory: memory_.failures = 1; return;
      case Op::late: return clock_.step();
    }
  }

  void play_forward(const Op& op, Context& context) {
    std::vector<float> out(op.experts.size() * kHidden, -1.0f);
    std::list<unsigned>::iterator mine;
    {
      std::lock_guard lock(mutex_);
      mine = allowed_.insert(allowed_.end(), possible());
    }
    const Status status = world_.forward(*model_, &context, op.layer, op.experts, out.data());
    unsigned allowed;
    {
      std::lock_guard lock(mutex_);
      allowed = *mine;
      allowed_.erase(mine);
    }
    check(Op::forward, "a forward", status);
    if (!status.ok()) return;
    const bool right =
        ((allowed & 1) && world_.equals(0, op.layer, op.experts, out.data())) ||
        ((allowed & 2) && world_.equals(1, op.layer, op.experts, out.data())) ||
        (allowed == 3 && by_pieces_ && world_.mixes(op.layer, op.experts, out.data()));
    if (!right) note("a forward is wrong");
  }

  // Versions change between the begin and the end of `body`, which says what serves afterwards.
  template <class Body>
  void change(Body body) {
    {
      std::lock_guard lock(mutex_);
      ++changing_;
      for (unsigned& allowed : allowed_) allowed = 3;
    }
    body();
    std::lock_guard lock(mutex_);
    --changing_;
    for (unsigned& allowed : allowed_) allowed |= possible();
  }

  // Versions as the store's own one-at-a-time rule ordered them.
  void play_reload(const Op& op) {
    const auto version = store_->reload(sources_[op.weights], {.step = op.step});
    // Two whole versions need not fit where the budget has grown to hold everything.
    if (version.ok() || version.status().code() != StatusCode::resource_exhausted || !by_pieces_)
      check(Op::reload, "a reload", version.status());
    learn();
  }
  void play_rollback() {
    const Status status = store_->rollback();
    if (status.code() != StatusCode::failed_precondition) check(Op::rollback, "a rollback", status);
    learn();
  }
  // Which weights the newest table names, by the digest of an expert that it has.
  void learn() {
    ExpertStore::Impl& impl = *store_->impl();
    std::lock_guard hold(impl.mutex);
    const uint32_t version = impl.layers[0]->serving->experts[0];
    const bool first = &impl.find_version(version)->source == &sources_[0];
    std::lock_guard lock(mutex_);
    current_ = first ? 0 : 1;
  }

  // Flips a bit of some resident expert that no output depends on, and looks for it. (Not among
  // real threads: there it would be a data race.)
  void play_scrub() {
    ExpertStore::Impl& impl = *store_->impl();
    {
      std::lock_guard hold(impl.mutex);
      for (SlotClass& slots : impl.classes)
        for (size_t i = 0; i < slots.copies.size() && scheduled_; ++i)
          if (slots.copies[i].state == CopyState::ready && slots.copies[i].leases == 0 &&
              slots.copies[i].expert != kSharedExpert) {
            slots.pool->address(static_cast<int64_t>(i))[world_.padding()] ^= std::byte{1};
            break;
          }
    }
    const auto report = store_->scrub();
    check(Op::scrub, "a scrub", report.status());
    if (report.ok() && report->found != report->repaired && !read_faults_ && !memory_faults_ &&
        !late_)
      note("a scrub could not repair");
  }

  const World& world_;
  TroubledSource sources_[2];
  TroubledMemory memory_;
  CallingThread executor_;
  SteppingClock clock_;
  SteppingGemm gemm_;
  bool scheduled_;
  std::optional<ExpertStore> store_;
  std::optional<Model> model_;

  bool read_faults_ = false, memory_faults_ = false, late_ = false, by_pieces_ = false;
  std::atomic<int64_t> done_[Op::kKinds] = {};  // by kind
  mutable std::mutex mutex_;
  std::string wrong_;
  int current_ = 0, changing_ = 0;
  std::list<unsigned> allowed_;  // of every forward in flight: bit w for weights w
};

}  // namespace moe::test
