// What both CPU backends promise: the bits of a row depend on nothing but the row and its expert,
// whatever the threads, the batch, the order and the instruction set; and run() allocates nothing.
#include "catch.h"
#include "gemm/cpu_gemm.h"
#include "gemm/problems.h"
#include "gemm/quant_gemm.h"
#include "model/allocations.h"

using namespace moe;
using namespace moe::test;

namespace {

// Backends of the same bits, one per instruction set of this machine, best first.
struct Family {
  const char* name;
  bool integers;  // the weights it serves
  std::vector<std::unique_ptr<ExpertGemm>> sets;

  const ExpertGemm& best() const { return *sets.front(); }
  std::vector<Format> formats() const {
    std::vector<Format> served;
    for (const Format& format : all_formats())
      if (integers == (format.kind == FormatKind::int8 || format.kind == FormatKind::int4))
        served.push_back(format);
    return served;
  }
};

std::vector<Family> families() {
  std::vector<Family> all;
  all.push_back({"floats", false, {}});  // rows in bf16 where the machine has units for them
  all.back().sets.push_back(cpu::make_gemm(cpu::best_kernels()));
  all.push_back({"floats, exact", false, {}});
  for (const cpu::Kernels& kernels : cpu::all_kernels())
    if (kernels.available())
      all.back().sets.push_back(cpu::make_gemm(kernels, RowPrecision::exact));
  for (RowPrecision rows : {RowPrecision::automatic, RowPrecision::exact}) {
    all.push_back({rows == RowPrecision::exact ? "integers, exact" : "integers", true, {}});
    for (const cpu::QuantKernels& kernels : cpu::all_quant_kernels())
      if (kernels.available())
        all.back().sets.push_back(cpu::make_quant_gemm(kernels, cpu::best_kernels(), rows));
  }
  return all;
}

// Over several chains of FMAs, ranges of blocks, tiles and chunks; odd everywhere.
Problem odd_problem(const Format& format) {
  return {.spec = {.hidden = 611, .intermediate = 67, .bias = true, .format = format},
          .experts = 3,
          .top_k = 2,
          .tokens = 217,
          .rows = DType::bf16,
          .row_padding = 3,
          .seed = seed()};
}

}  // namespace

TEST_CASE("same bits for 1, 2, 3 and 8 threads, and one expert after the other",
          "[gemm][mission-30][mission-31][mission-42][mission-43]") {
  for (const Family& family : families())
    for (const Format& format : family.formats()) {
      const Prepared prepared = prepare(odd_problem(format));
      const ExpertSpec& spec = prepared.problem.spec;
      INFO(family.name << ": " << describe(prepared.problem));
      const Slots slots(family.best(), prepared);
      const auto expected = run(family.best(), prepared, slots);
      CHECK(error_against_reference(prepared, expected) <=
            family.best().error_bound(spec, prepared.problem.rows));
      for (int threads : {1, 2, 3, 8}) {
        CHECK(same_bits(run(family.best(), prepared, slots, {.threads = threads}), expected));
        CHECK(same_bits(run(family.best(), prepared, slots, {threads, true}), expected));
      }
      const auto workspace = [&](int64_t pairs, int64_t groups) {
        return family.best().workspace_bytes(spec, pairs, groups, 1);
      };
      CHECK(workspace(217, 1) < workspace(217 * 2, 3));  // sequential needs one expert's rows
    }
}

TEST_CASE("each instruction set, forced: same bits for 1, 2, 3 and 8 threads",
          "[gemm][mission-30][mission-31][mission-42][mission-43]") {
  for (const Family& family : families())
    for (const Format& format : family.formats()) {
      Problem problem = odd_problem(format);
      problem.tokens = 67;
      const Prepared prepared = prepare(problem);
      const Slots slots(family.best(), prepared);
      const auto expected = run(family.best(), prepared, slots);
      for (size_t set = 0; set < family.sets.size(); ++set)
        for (int threads : {1, 2, 3, 8}) {
          INFO(family.name << ", set " << set << ": " << describe(problem));
          CHECK(same_bits(run(*family.sets[set], prepared, slots, {.threads = threads}), expected));
        }
    }
}

TEST_CASE("a row alone and among others has the same bits", "[gemm][mission-30]") {
  for (const Family& family : families())
    for (const Format& format : family.formats()) {
      const Prepared prepared = prepare(odd_problem(format));
      INFO(family.name << ": " << describe(prepared.problem));
      const Slots slots(family.best(), prepared);
      const auto together = run(family.best(), prepared, slots);
      const int64_t elements = prepared.problem.top_k * prepared.problem.spec.hidden;
      for (int64_t token : {0, 1, 77, 216}) {
        const auto begin = together.begin() + token * elements;
        const std::vector<float> expected(begin, begin + elements);
        CHECK(same_bits(run(family.best(), alone(prepared, token), slots), expected));
      }
    }
}

TEST_CASE("run() allocates nothing", "[gemm][mission-36]") {
  auto executor = make_executor(2);
  REQUIRE(executor.ok());
  for (const Family& family : families())
    for (const Format& format : family.formats()) {
      const Prepared prepared = prepare(odd_problem(format));
      INFO(family.name << ": " << describe(prepared.problem));
      const Slots slots(family.best(), prepared);
      std::vector<ExpertGroup> groups = prepared.groups;
      for (ExpertGroup& group : groups) group.slot = slots.slot(group.expert);
      const size_t bytes = family.best().workspace_bytes(
          prepared.problem.spec, static_cast<int64_t>(prepared.pairs.size()),
          static_cast<int64_t>(groups.size()), 2);
      struct alignas(64) Line {
        std::byte bytes[64];
      };
      std::vector<Line> workspace(bytes / sizeof(Line) + 1);
      std::vector<float> out(prepared.ids.size() * prepared.problem.spec.hidden);
      const ExpertBatch batch{.hidden = prepared.hidden_view(),
                              .top_k = prepared.problem.top_k,
                              .groups = groups,
                              .pairs = prepared.pairs.data(),
                              .out = out.data(),
                              .executor = executor->get(),
                              .workspace = {workspace[0].bytes, bytes}};
      const int64_t before = allocations();
      const bool ok = family.best().run(prepared.problem.spec, batch).ok();
      CHECK(allocations() == before);
      CHECK(ok);
    }
}
