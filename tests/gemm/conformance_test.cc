// Runs every row of the table that this machine has; a new backend needs no line here.
#include <cmath>

#include "catch.h"
#include "gemm/problems.h"

using namespace moe;
using namespace moe::test;

namespace {

constexpr Activation kActivations[] = {
    Activation::silu,  Activation::gelu,       Activation::gelu_tanh,  Activation::relu,
    Activation::relu2, Activation::swiglu_oai, Activation::swiglu_step};
constexpr DType kRows[] = {DType::f32, DType::bf16, DType::f16};

// Small primes, powers of two and their neighbours.
int64_t extent(std::mt19937_64& random, int64_t most) {
  const int64_t picks[] = {1,  2,  3,  7,   15,  16,  17,  31,  32,
                           33, 63, 65, 100, 127, 255, 257, 300, 520};
  for (;;) {
    const int64_t value = picks[random() % std::size(picks)];
    if (value <= most) return value;
  }
}

Problem random_problem(std::mt19937_64& random) {
  Problem p;
  p.seed = random();
  p.spec.activation = kActivations[random() % std::size(kActivations)];
  const bool needs_gate = p.spec.activation >= Activation::swiglu_oai;
  p.spec.gated = needs_gate || random() % 2;
  p.spec.bias = random() % 2;
  p.spec.limit = random() % 2 ? 7.0f : 0.75f;
  p.spec.format = all_formats()[random() % all_formats().size()];
  p.spec.hidden = extent(random, 520);
  p.spec.intermediate = extent(random, 520);
  p.rows = kRows[random() % std::size(kRows)];
  p.row_padding = random() % 3 ? 0 : 5;
  p.input_weights = random() % 4 == 0;
  p.one_expert = random() % 5 == 0;
  const int32_t experts[] = {1, 2, 5, 16, 64, 512};
  p.experts = experts[random() % std::size(experts)];
  p.top_k = 1 + static_cast<int32_t>(random() % std::min(16, p.experts));
  // Bounded work: the reference makes some 0.3 GFLOP/s.
  const int64_t work = p.spec.hidden * p.spec.intermediate * p.top_k * 3;
  p.tokens = std::min<int64_t>(4097, 1 + random() % std::max<int64_t>(1, 3'000'000 / work));
  if (random() % 10 == 0) p.tokens = 0;
  if (p.experts * p.spec.hidden * p.spec.intermediate > 4'000'000) p.experts = 2, p.top_k = 1;
  return p;
}

std::vector<const ExpertGemmRow*> cpu_rows() {
  std::vector<const ExpertGemmRow*> rows;
  for (const ExpertGemmRow& row : expert_gemm_rows())
    if (row.device == DeviceKind::cpu && row.available().ok()) rows.push_back(&row);
  return rows;
}

constexpr RowPrecision kPrecisions[] = {RowPrecision::automatic, RowPrecision::exact};

// A format that the backend serves.
Format first_format(const ExpertGemm& gemm) {
  for (const Format& format : all_formats())
    if (gemm.supports({.hidden = 8, .intermediate = 8, .format = format}).ok()) return format;
  FAIL("no format is served");
  return {};
}

void check_conforms(const ExpertGemm& gemm, const Problem& problem, const RunOptions& options,
                    bool exact = false) {
  INFO(gemm.name() << ", " << options.threads << " threads: " << describe(problem));
  const Prepared prepared = prepare(problem);
  const Slots slots(gemm, prepared);
  const std::vector<float> out = run(gemm, prepared, slots, options);
  const double error = error_against_reference(prepared, out);
  const double bound = exact ? 2e-6 : gemm.error_bound(problem.spec, problem.rows);
  // What a few products sum to may cancel, so the rounding of rows is judged where many are summed.
  const bool many = problem.spec.hidden >= 63 && problem.spec.intermediate >= 63;
  const double few = problem.tokens * problem.spec.hidden < 64 ? 16 : 1;  // sums may nearly cancel
  if (bound <= 2e-6 || many) CHECK(error <= few * bound);
  // Integer weights meet rows in q8, unless the backend is more exact than it must be.
  if (!exact && is_quantised(problem.spec.format.kind) && error > 2e-6)
    // A value between two steps may round the other way; among few it weighs.
    CHECK(error_against_reference(prepared, out, Rows::q8) <=
          (problem.spec.intermediate < 256 ? 4e-3 : 1e-3) * few);
}

}  // namespace

TEST_CASE("every backend equals the reference on random shapes",
          "[gemm][mission-30][mission-33][mission-38][mission-139]") {
  for (const ExpertGemmRow* row : cpu_rows()) {
    std::mt19937_64 random(seed());
    for (int i = 0; i < 120; ++i) {
      const RowPrecision rows = kPrecisions[i / 4 % 2];
      const auto gemm = row->make({rows});
      const Problem problem = random_problem(random);
      if (!gemm->supports(problem.spec).ok()) continue;
      check_conforms(*gemm, problem, {.threads = i % 4}, rows == RowPrecision::exact);
    }
  }
}

TEST_CASE("every activation in every format, with and without gate and bias",
          "[gemm][mission-38]") {
  for (const ExpertGemmRow* row : cpu_rows()) {
    const auto gemm = row->make({});
    for (Activation activation : kActivations)
      for (const Format& format : all_formats())
        for (int flags = 0; flags < 4; ++flags) {
          Problem p{.spec = {.hidden = 69,
                             .intermediate = 77,
                             .activation = activation,
                             .gated = (flags & 1) != 0,
                             .bias = (flags & 2) != 0,
                             .limit = 0.5f,
                             .format = format},
                    .tokens = 9,
                    .seed = seed()};
          if (!gemm->supports(p.spec).ok()) {
            const bool impossible = activation >= Activation::swiglu_oai && !p.spec.gated;
            CHECK((impossible ||
                   !gemm->supports({.hidden = 69, .intermediate = 77, .format = format}).ok()));
            continue;
          }
          check_conforms(*gemm, p, {});
        }
  }
}

TEST_CASE("4097 rows, all to one expert", "[gemm][mission-139]") {
  for (const ExpertGemmRow* row : cpu_rows())
    for (const Format& format : {Format{}, Format{FormatKind::int4, 32, DType::bf16}}) {
      const Problem problem = {.spec = {.hidden = 33, .intermediate = 17, .format = format},
                               .experts = 3,
                               .tokens = 4097,
                               .one_expert = true,
                               .seed = seed()};
      const auto gemm = row->make({});
      if (gemm->supports(problem.spec).ok()) check_conforms(*gemm, problem, {.threads = 2});
    }
}

TEST_CASE("what a backend cannot serve is refused with the numbers", "[gemm][mission-121]") {
  for (const ExpertGemmRow* row : cpu_rows()) {
    const auto gemm = row->make({});
    INFO(row->name);
    ExpertSpec spec{.hidden = 64, .intermediate = 32, .format = first_format(*gemm)};
    CHECK(gemm->supports(spec).ok());
    spec.format = {FormatKind::nvfp4, 16};
    CHECK(gemm->supports(spec).code() == StatusCode::unimplemented);
    CHECK(gemm->supports(spec).message().find("nvfp4") != std::string_view::npos);
    spec = {.hidden = 0, .intermediate = 32};
    CHECK(gemm->supports(spec).message().find("hidden is 0") != std::string_view::npos);
    spec = {.hidden = 64, .intermediate = int64_t{1} << 40};
    CHECK(gemm->supports(spec).code() == StatusCode::invalid_argument);
    spec = {.hidden = 4, .intermediate = 4, .activation = Activation::swiglu_oai, .gated = false};
    CHECK(gemm->supports(spec).code() == StatusCode::invalid_argument);
  }
}

TEST_CASE("a wrong batch is refused and nothing is written", "[gemm][mission-121]") {
  for (const ExpertGemmRow* row : cpu_rows()) {
    const auto gemm = row->make({});
    const Prepared prepared = prepare(
        {.spec = {.hidden = 8, .intermediate = 8, .format = first_format(*gemm)}, .seed = seed()});
    const Slots slots(*gemm, prepared);
    std::vector<float> out(prepared.ids.size() * 8, 5.0f);
    alignas(64) std::byte workspace[1 << 16];
    ExpertGroup group = prepared.groups[0];
    group.slot = slots.slot(group.expert);
    const ExpertBatch good{.hidden = prepared.hidden_view(),
                           .top_k = 2,
                           .groups = {&group, 1},
                           .pairs = prepared.pairs.data(),
                           .out = out.data(),
                           .workspace = workspace};
    const auto refused = [&](ExpertBatch batch) {
      const Status status = gemm->run(prepared.problem.spec, batch);
      return status.code() == StatusCode::invalid_argument && !status.message().empty();
    };
    ExpertBatch bad = good;
    bad.hidden.shape[1] = 7;
    CHECK(refused(bad));
    bad = good;
    bad.hidden.dtype = DType::i32;
    CHECK(refused(bad));
    bad = good;
    bad.top_k = 0;
    CHECK(refused(bad));
    bad = good;
    bad.out = nullptr;
    CHECK(refused(bad));
    const std::vector<int64_t> wild(prepared.pairs.size(), 1 << 20);
    bad = good;
    bad.pairs = wild.data();
    CHECK(refused(bad));
    ExpertGroup odd = group;
    odd.slot += 4;
    bad = good;
    bad.groups = {&odd, 1};
    CHECK(refused(bad));
    bad = good;
    bad.workspace = {workspace + 1, sizeof workspace - 64};
    CHECK((refused(bad) || gemm->workspace_bytes(prepared.problem.spec, 10, 1, 1) == 0));
    CHECK(out == std::vector<float>(out.size(), 5.0f));
    CHECK(gemm->run(prepared.problem.spec, good).ok());
  }
}
