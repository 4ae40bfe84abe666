// What the backend of float weights promises beyond conformance and cpu_bits_test.cc.
#include <cstring>

#include "catch.h"
#include "gemm/cpu_gemm.h"
#include "gemm/cpu_layout.h"
#include "gemm/cpu_tasks.h"
#include "gemm/problems.h"
#include "quant/half.h"

using namespace moe;
using namespace moe::test;

namespace {

// Over one chain of FMAs, several tiles and chunks, odd everywhere.
Problem odd_problem(const Format& format) {
  return {.spec = {.hidden = 291, .intermediate = 67, .bias = true, .format = format},
          .experts = 3,
          .top_k = 2,
          .tokens = 217,
          .rows = DType::bf16,
          .row_padding = 3,
          .seed = seed()};
}

constexpr Format kFormats[] = {
    {FormatKind::f32}, {FormatKind::f16}, {FormatKind::bf16}, {FormatKind::fp8_block, 128}};

}  // namespace

TEST_CASE("an expert of any number of rows has the bits of its rows alone in each set", "[gemm]") {
  for (const cpu::Kernels& kernels : cpu::all_kernels()) {
    if (!kernels.available()) continue;
    const auto gemm = cpu::make_gemm(kernels, RowPrecision::fast);
    for (int64_t rows = 1; rows <= 80; ++rows) {
      const Problem problem{
          .spec = {.hidden = 96, .intermediate = 40, .format = {FormatKind::bf16}},
          .experts = 1,
          .top_k = 1,
          .tokens = rows,
          .rows = DType::bf16,
          .one_expert = true,
          .seed = seed()};
      INFO(kernels.name << ": " << describe(problem));
      const Prepared prepared = prepare(problem);
      const Slots slots(*gemm, prepared);
      const auto together = run(*gemm, prepared, slots);
      for (int64_t token : {int64_t{0}, rows / 2, rows - 1}) {
        const auto begin = together.begin() + token * problem.spec.hidden;
        const std::vector<float> row(begin, begin + problem.spec.hidden);
        CHECK(same_bits(run(*gemm, alone(prepared, token), slots), row));
      }
    }
  }
}

TEST_CASE("every instruction set of this machine gives the same bits", "[gemm]") {
  const auto& best = cpu::best_kernels();
  for (const Format& format : kFormats)
    for (Activation activation :
         {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu2,
          Activation::swiglu_oai, Activation::swiglu_step}) {
      Problem problem = odd_problem(format);
      problem.spec.activation = activation;
      problem.tokens = 27;
      const Prepared prepared = prepare(problem);
      const auto gemm = cpu::make_gemm(best, RowPrecision::exact);
      const Slots slots(*gemm, prepared);
      const auto expected = run(*gemm, prepared, slots);
      CHECK(error_against_reference(prepared, expected) <= 2e-6);
      for (const cpu::Kernels& kernels : cpu::all_kernels()) {
        if (!kernels.available()) continue;
        INFO(kernels.name << " against " << best.name << ": " << describe(problem));
        CHECK(same_bits(run(*cpu::make_gemm(kernels, RowPrecision::exact), prepared, slots),
                        expected));
      }
    }
}

TEST_CASE("units for bf16 rows stay in their error class, and a row's bits are its own", "[gemm]") {
  int sets = 0;
  for (const cpu::Kernels& kernels : cpu::all_kernels()) {
    if (!kernels.bf16.multiply || !kernels.available()) continue;
    ++sets;
    for (DType rows : {DType::bf16, DType::f32, DType::f16})
      for (int64_t inputs : {1, 2, 31, 66, 600, 1100}) {
        Problem problem = odd_problem({FormatKind::bf16});
        problem.spec.hidden = inputs;
        problem.spec.intermediate = inputs % 97 + 3;
        problem.spec.gated = inputs % 2 == 0;
        problem.rows = rows;
        problem.tokens = inputs > 500 ? 40 : 217;
        problem.input_weights = inputs == 66;
        const Prepared prepared = prepare(problem);
        const auto gemm = cpu::make_gemm(kernels, RowPrecision::fast);
        const Slots slots(*gemm, prepared);
        const auto expected = run(*gemm, prepared, slots);
        const double error = error_against_reference(prepared, expected);
        INFO(kernels.name << ", error " << error << ": " << describe(problem));
        CHECK(gemm->error_bound(problem.spec, rows) == 5e-3);
        CHECK(error <= (inputs < 31 ? 2e-2 : 5e-3));  // few products average little
        for (int threads : {1, 2, 3, 8})
          CHECK(same_bits(run(*gemm, prepared, slots, {.threads = threads}), expected));
        const int64_t elements = problem.top_k * problem.spec.hidden;
        const std::vector<float> row(expected.begin() + 5 * elements,
                                     expected.begin() + 6 * elements);
        if (!problem.input_weights) CHECK(same_bits(run(*gemm, alone(prepared, 5), slots), row));
      }
  }
  if (sets == 0) return skip("this machine has no units for bf16 rows");
}

TEST_CASE("bf16 rows are used where the host allows them", "[gemm]") {
  cpu::Kernels kernels = cpu::all_kernels().back();
  const auto takes = [&](FormatKind weights, DType hidden, RowPrecision rows) {
    return cpu::takes_bf16_rows(kernels, weights, hidden, rows);
  };
  kernels.bf16 = {};
  CHECK_FALSE(takes(FormatKind::bf16, DType::bf16, RowPrecision::fast));
  kernels.bf16.multiply = [](const cpu::Multiply&) {};
  for (const bool automatic : {false, true}) {
    kernels.bf16.automatic = automatic;
    CHECK(takes(FormatKind::bf16, DType::bf16, RowPrecision::fast));
    CHECK(takes(FormatKind::bf16, DType::f32, RowPrecision::fast));
    CHECK(takes(FormatKind::bf16, DType::bf16, RowPrecision::automatic) == automatic);
    CHECK_FALSE(takes(FormatKind::bf16, DType::f32, RowPrecision::automatic));
    CHECK_FALSE(takes(FormatKind::bf16, DType::f16, RowPrecision::automatic));
    CHECK_FALSE(takes(FormatKind::bf16, DType::bf16, RowPrecision::exact));
    CHECK_FALSE(takes(FormatKind::f16, DType::bf16, RowPrecision::fast));
    CHECK_FALSE(takes(FormatKind::f32, DType::bf16, RowPrecision::fast));
  }
}

TEST_CASE("narrow weights are widened once where many tiles use them", "[gemm]") {
  using cpu::Widening;
  CHECK(cpu::choose_widening(2, 1) == Widening::in_registers);
  CHECK(cpu::choose_widening(2, 2) == Widening::in_registers);
  CHECK(cpu::choose_widening(2, 3) == Widening::in_cache);
  CHECK(cpu::choose_widening(4, 10) == Widening::in_registers);  // nothing to widen
}

TEST_CASE("long rows stay within 2e-6 of the reference", "[gemm]") {
  const auto gemm = cpu::make_gemm(cpu::best_kernels());
  const Problem problem{.spec = {.hidden = 14336, .intermediate = 40},
                        .experts = 1,
                        .top_k = 1,
                        .tokens = 12,
                        .one_expert = true,
                        .seed = seed()};
  const Prepared prepared = prepare(problem);
  const double error = error_against_reference(prepared, run(*gemm, prepared, {*gemm, prepared}));
  INFO("error " << error);
  CHECK(error <= 2e-6);
}

TEST_CASE("tiles cover all rows, evenly", "[gemm]") {
  for (int64_t most : {1, 6, 12})
    for (int64_t rows = 1; rows < 200; ++rows) {
      const cpu::Tiles tiles(rows, most);
      CHECK(tiles.count == (rows + most - 1) / most);
      int64_t next = 0;
      for (int64_t t = 0; t < tiles.count; ++t) {
        REQUIRE(tiles.first_row(t) == next);
        REQUIRE(tiles.size(t) >= rows / tiles.count);
        REQUIRE(tiles.size(t) <= most);
        next += tiles.size(t);
      }
      CHECK(next == rows);
    }
  CHECK(cpu::Tiles(13, 12).size(1) == 6);
}

TEST_CASE("runs cover all panel pairs, long ones where there are tasks enough", "[gemm]") {
  for (int64_t pairs : {1, 2, 7, 64, 100})
    for (int64_t bytes : {4096, 18432, 131072, 524288})
      for (int64_t chunks : {1, 8, 500})
        for (int threads : {1, 2, 16}) {
          const cpu::Runs runs(pairs, bytes, chunks, threads);
          INFO(pairs << " " << bytes << " " << chunks << " " << threads);
          REQUIRE(runs.begin(0) == 0);
          REQUIRE(runs.begin(runs.count) == pairs);
          for (int64_t run = 0; run < runs.count; ++run) {
            const int64_t size = runs.begin(run + 1) - runs.begin(run);
            CHECK(size >= 1);
            CHECK((size == 1 || size * bytes <= 128 << 10));
            CHECK(runs.to_next(run, runs.begin(run + 1) - 1, threads) ==
                  runs.begin(run + threads) - runs.begin(run + 1) + 1);
            if (size > 1) CHECK(runs.to_next(run, runs.begin(run), threads) == 1);
          }
        }
  CHECK(cpu::Runs(64, 18432, 8, 2).count == 10);  // of six or seven
  CHECK(cpu::Runs(64, 18432, 1, 2).count == 64);  // few tasks: single pairs
  CHECK(cpu::Runs(64, 131072, 8, 2).count == 64);
}

TEST_CASE("a slot's sections follow from the shape", "[gemm]") {
  const auto gated =
      cpu::sections({.hidden = 33, .intermediate = 17, .bias = true, .format = {FormatKind::bf16}});
  CHECK(gated.hidden_inputs == 34);
  CHECK(gated.intermediate_inputs == 18);
  CHECK(gated.gate_up_pairs == 2);  // 16 outputs a pair: gate and up
  CHECK(gated.down_pairs == 2);     // 32 outputs a pair
  CHECK(gated.down == 2 * 34 * 32 * 2);
  CHECK(gated.gate_up_bias == gated.down + 2 * 18 * 32 * 2);
  CHECK(gated.bytes == gated.gate_up_bias + (2 + 2) * 32 * 4);
  const auto plain = cpu::sections(
      {.hidden = 33, .intermediate = 17, .gated = false, .format = {FormatKind::f32}});
  CHECK(plain.gate_up_pairs == 1);
  CHECK(plain.bytes == 34 * 32 * 4 + 2 * 18 * 32 * 4);
}

TEST_CASE("a bf16 slot holds the bits of the weights, pairs of inputs side by side", "[gemm]") {
  const ExpertSpec spec{.hidden = 3, .intermediate = 17, .format = {FormatKind::bf16}};
  const RandomWeights weights(spec, 1, seed());
  const auto gemm = cpu::make_gemm(cpu::best_kernels());
  std::vector<uint16_t> slot(gemm->layout(spec).bytes / 2, 0xffff), up(17 * 3);
  REQUIRE(gemm->pack(spec, weights, 3, 0, reinterpret_cast<std::byte*>(slot.data())).ok());
  REQUIRE(weights.read({3, WeightKind::up, 0}, {up.data(), DType::bf16, {17, 3}}).ok());
  // Input 2 of output 16 of up: pair 1, panel 1 of 2, inputs pair 1, lane 0, first of two.
  CHECK(slot[(1 * 2 + 1) * 4 * 16 + 1 * 32] == up[16 * 3 + 2]);
  CHECK(slot[(1 * 2 + 1) * 4 * 16 + 1 * 32 + 1] == 0);
  // Input 1 of output 5 of up.
  CHECK(slot[1 * 4 * 16 + 5 * 2 + 1] == up[5 * 3 + 1]);
}

TEST_CASE("weights that do not fit into f16 are refused", "[gemm][mission-121]") {
  class Huge final : public WeightSource {
   public:
    const std::vector<LayerSpec>& layers() const noexcept override { return layers_; }
    Result<TensorShape> describe(const WeightId&) const override {
      return TensorShape{DType::f32, {1, 1}, {1, 1}, {}};
    }
    Status read(const WeightId& id, const MutableTensorView& out) const override {
      *static_cast<float*>(out.data) = id.kind == WeightKind::down ? 1e6f : 1.0f;
      return {};
    }
    std::string_view name() const noexcept override { return "huge"; }
    std::vector<LayerSpec> layers_;
  };
  const ExpertSpec spec{.hidden = 1, .intermediate = 1, .format = {FormatKind::f16}};
  const auto gemm = cpu::make_gemm(cpu::best_kernels());
  std::vector<std::byte> slot(gemm->layout(spec).bytes);
  const Status status = gemm->pack(spec, Huge(), 5, 2, slot.data());
  CHECK(status.code() == StatusCode::out_of_range);
  CHECK(status.place().tensor == "down");
  CHECK(status.place().layer == 5);
  CHECK(status.place().expert == 2);
}
