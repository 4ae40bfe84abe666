// Two batches in one pass: chosen experts and a shared one.
#include <cmath>

#include "catch.h"
#include "gemm/cpu_pass.h"
#include "gemm/problems.h"
#include "quant/half.h"

using namespace moe;
using namespace moe::test;

namespace {

// Counts the jobs that reach the threads.
class CountingExecutor final : public Executor {
 public:
  explicit CountingExecutor(int threads) : executor_(*make_executor(threads)) {}
  int concurrency() const noexcept override { return executor_->concurrency(); }
  void run(int64_t tasks, Task task, void* argument) noexcept override {
    ++jobs;
    executor_->run(tasks, task, argument);
  }

  int jobs = 0;

 private:
  std::unique_ptr<Executor> executor_;
};

// One backend's batch, its output and workspace poisoned.
class Work {
 public:
  Work(const Problem& problem, const char* backend, Executor* executor)
      : prepared_(prepare(problem)),
        gemm_(*make_expert_gemm({}, problem.spec, backend)),
        slots_(*gemm_, prepared_),
        groups_(prepared_.groups),
        out_(prepared_.ids.size() * problem.spec.hidden, detail::f32_of_bits(0xffffffff)) {
    for (ExpertGroup& group : groups_) group.slot = slots_.slot(group.expert);
    const size_t bytes = gemm_->workspace_bytes(
        problem.spec, static_cast<int64_t>(prepared_.pairs.size()),
        static_cast<int64_t>(groups_.size()), executor ? executor->concurrency() : 1);
    workspace_.resize(bytes / sizeof(Line) + 1, {NAN});
    batch_ = {.hidden = prepared_.hidden_view(),
              .top_k = problem.top_k,
              .groups = groups_,
              .pairs = prepared_.pairs.data(),
              .out = out_.data(),
              .executor = executor,
              .workspace = {reinterpret_cast<std::byte*>(workspace_.data()), bytes}};
  }

  GemmCall call() const { return {*gemm_, prepared_.problem.spec, batch_}; }
  ExpertBatch& batch() { return batch_; }
  std::vector<float> alone() const { return test::run(*gemm_, prepared_, slots_); }
  const std::vector<float>& out() const { return out_; }

 private:
  struct alignas(64) Line {
    float values[16];
  };

  Prepared prepared_;
  std::unique_ptr<ExpertGemm> gemm_;
  Slots slots_;
  std::vector<ExpertGroup> groups_;
  std::vector<float> out_;
  std::vector<Line> workspace_;
  ExpertBatch batch_;
};

Problem routed(const Format& format, int64_t tokens) {
  return {.spec = {.hidden = 384, .intermediate = 67, .format = format},
          .experts = 5,
          .top_k = 3,
          .tokens = tokens,
          .rows = DType::bf16,
          .seed = seed()};
}

Problem shared(const Format& format, int64_t tokens) {
  Problem problem = routed(format, tokens);
  problem.spec.intermediate = 150;
  problem.experts = problem.top_k = 1;
  problem.one_expert = true;
  problem.rows = DType::f32;
  return problem;
}

constexpr Format kBf16 = {FormatKind::bf16}, kInt4 = {FormatKind::int4, 32, DType::bf16};

}  // namespace

TEST_CASE("chosen and shared experts in one pass have the bits of two", "[gemm][mission-30]") {
  for (const auto& [first, second] : {std::pair(kBf16, kBf16), {kInt4, kBf16}, {kBf16, kInt4}})
    for (const int64_t tokens : {1, 90})
      for (const int threads : {0, 1, 2, 3, 8}) {
        INFO(to_string(first.kind) << " beside " << to_string(second.kind) << ", " << tokens
                                   << " tokens, " << threads << " threads");
        const auto executor = threads > 0 ? *make_executor(threads) : nullptr;
        const Work a(routed(first, tokens), "", executor.get());
        const Work b(shared(second, tokens), "", executor.get());
        REQUIRE(run_together(a.call(), b.call()).ok());
        CHECK(same_bits(a.out(), a.alone()));
        CHECK(same_bits(b.out(), b.alone()));
      }
}

TEST_CASE("a second batch in the pass costs no more jobs than the longer one", "[gemm]") {
  CountingExecutor executor(2);
  const auto jobs_of = [&](auto call) {
    executor.jobs = 0;
    REQUIRE(call().ok());
    return executor.jobs;
  };
  const Work a(routed(kBf16, 90), "", &executor), b(shared(kInt4, 90), "", &executor);
  const auto run = [](const GemmCall& call) { return call.gemm.run(call.spec, call.batch); };
  const int first = jobs_of([&] { return run(a.call()); });
  const int second = jobs_of([&] { return run(b.call()); });
  CHECK(first == 3);
  CHECK(second == 4);
  CHECK(jobs_of([&] { return run_together(a.call(), b.call()); }) == 4);
}

TEST_CASE("backends that share no pass run one after the other, and errors stop both", "[gemm]") {
  const Work a(routed(kBf16, 7), "reference", nullptr), b(shared(kBf16, 7), "cpu", nullptr);
  REQUIRE(run_together(a.call(), b.call()).ok());
  CHECK(same_bits(a.out(), a.alone()));
  CHECK(same_bits(b.out(), b.alone()));

  Work whole(routed(kBf16, 7), "cpu", nullptr), small(shared(kBf16, 7), "cpu", nullptr);
  small.batch().workspace = small.batch().workspace.first(64);
  const Status refused = run_together(whole.call(), small.call());
  CHECK(refused.code() == StatusCode::invalid_argument);
  for (const Work* work : {&whole, &small})
    for (const float value : work->out()) REQUIRE(is_poison(value));
}
