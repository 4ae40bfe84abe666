// What the int8 and int4 backend promises beyond conformance and cpu_bits_test.cc.
#include <cstring>

#include "catch.h"
#include "gemm/problems.h"
#include "gemm/quant_gemm.h"
#include "gemm/quant_layout.h"
#include "quant/half.h"
#include "quant/q8.h"

using namespace moe;
using namespace moe::test;

namespace {

std::unique_ptr<ExpertGemm> best(RowPrecision rows) {
  return cpu::make_quant_gemm(cpu::best_quant_kernels(), cpu::best_kernels(), rows);
}

// f32 weights: what quantising at load starts from.
class FloatWeights final : public WeightSource {
 public:
  explicit FloatWeights(ExpertSpec spec) : weights_(with_floats(spec), 2, seed()) {}
  const std::vector<LayerSpec>& layers() const noexcept override { return weights_.layers(); }
  Result<TensorShape> describe(const WeightId& id) const override { return weights_.describe(id); }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    const Status status = weights_.read(id, out);
    if (id.kind == poison) static_cast<float*>(out.data)[0] = NAN;
    return status;
  }
  std::string_view name() const noexcept override { return "floats"; }

  WeightKind poison = WeightKind::router_weight;

 private:
  static ExpertSpec with_floats(ExpertSpec spec) {
    spec.format = {FormatKind::f32};
    return spec;
  }
  RandomWeights weights_;
};

}  // namespace

TEST_CASE("integer weights: an expert of any number of rows has the same bits in each set",
          "[gemm][mission-30][mission-42][mission-43]") {
  for (const Format& format :
       {Format{FormatKind::int8, 0, DType::bf16}, Format{FormatKind::int4, 32, DType::f16, true}})
    for (int64_t rows = 1; rows <= 80; ++rows) {
      const Problem problem{.spec = {.hidden = 96, .intermediate = 40, .format = format},
                            .experts = 1,
                            .top_k = 1,
                            .tokens = rows,
                            .one_expert = true,
                            .seed = seed()};
      const Prepared prepared = prepare(problem);
      const auto gemm = cpu::make_quant_gemm(cpu::all_quant_kernels().back(), cpu::best_kernels(),
                                             RowPrecision::automatic);
      const Slots slots(*gemm, prepared);
      const auto expected = run(*gemm, prepared, slots);
      for (const cpu::QuantKernels& kernels : cpu::all_quant_kernels()) {
        if (!kernels.available()) continue;
        INFO(kernels.name << ": " << describe(problem));
        const auto other =
            cpu::make_quant_gemm(kernels, cpu::best_kernels(), RowPrecision::automatic);
        CHECK(same_bits(run(*other, prepared, slots), expected));
      }
    }
}

TEST_CASE("q8 in SIMD has the bits of its definition", "[gemm][quant]") {
  std::mt19937_64 random(seed());
  std::normal_distribution<float> normal;
  for (const cpu::QuantKernels& kernels : cpu::all_quant_kernels()) {
    if (!kernels.available()) continue;
    INFO(kernels.name);
    for (int i = 0; i < 2000; ++i) {
      alignas(64) float values[kQ8Block];
      const float size = std::ldexp(1.0f, static_cast<int>(random() % 250) - 125);
      for (float& value : values) value = normal(random) * size;
      if (i % 10 == 0) values[i / 10 % kQ8Block] = i % 20 ? NAN : -INFINITY;
      if (i % 10 == 1) std::fill_n(values, kQ8Block, 0.0f);
      alignas(64) int8_t q[kQ8Block], expected[kQ8Block];
      cpu::Q8Scale got;
      kernels.encode_q8(values, q, &got);
      const float scale = encode_q8(values, expected);
      REQUIRE(std::memcmp(q, expected, sizeof q) == 0);
      REQUIRE((got.scale == scale || (std::isnan(scale) && std::isnan(got.scale))));
      int sum = 0;
      for (int8_t value : expected) sum += value;
      REQUIRE(got.minus_sum == -sum);
    }
  }
}

TEST_CASE("the extremes of both integers fit into every instruction set's sums", "[gemm][quant]") {
  // int8 weights of -128 and zero points of 127, int4 weights of 15, rows of alternating sign.
  struct Extreme final : WeightSource {
    explicit Extreme(const Format& format) {
      LayerSpec layer;
      layer.layer = 3;
      layer.expert = {.hidden = 96, .intermediate = 32, .gated = false, .format = format};
      layer.expert.activation = Activation::relu;
      layers_.push_back(layer);
    }
    const std::vector<LayerSpec>& layers() const noexcept override { return layers_; }
    Result<TensorShape> describe(const WeightId& id) const override {
      const Format& f = layers_[0].expert.format;
      const bool down = (static_cast<int>(id.kind) - static_cast<int>(WeightKind::gate)) % 3 == 2;
      const int64_t rows = down ? 96 : 32, columns = down ? 32 : 96;
      if (id.kind <= WeightKind::down) {
        const Dims shape = value_shape(f, rows, columns);
        return TensorShape{value_type(f), shape, row_major(shape), {}};
      }
      const Dims shape = scale_shape(f, rows, columns);
      return TensorShape{
          id.kind < WeightKind::gate_zero ? f.scale : zero_type(f), shape, row_major(shape), {}};
    }
    Status read(const WeightId& id, const MutableTensorView& out) const override {
      const bool small = layers_[0].expert.format.kind == FormatKind::int4;
      const int64_t count = out.shape.elements();
      if (id.kind <= WeightKind::down)
        std::memset(out.data, small ? 0xff : 0x80, count);
      else if (id.kind >= WeightKind::gate_zero)
        std::memset(out.data, small ? 0 : 0x7f, count);
      else
        for (int64_t i = 0; i < count; ++i) static_cast<float*>(out.data)[i] = -0.25f;
      return {};
    }
    std::string_view name() const noexcept override { return "extremes"; }
    std::vector<LayerSpec> layers_;
  };
  for (FormatKind kind : {FormatKind::int8, FormatKind::int4}) {
    const Format format = {kind, 32, DType::f32, true};
    const Extreme source(format);
    const ExpertSpec& spec = source.layers()[0].expert;
    const auto gemm = best(RowPrecision::automatic);
    std::vector<std::byte> memory(gemm->layout(spec).bytes + 64);
    std::byte* slot = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    REQUIRE(gemm->pack(spec, source, 3, 0, slot).ok());
    std::vector<float> x(96, 127.0f);  // every integer of the row is 127
    const double weight = kind == FormatKind::int8 ? -255 * -0.25 : 15 * -0.25;
    const int64_t pair = 0;
    const ExpertGroup group = {slot, 0, 0, 1};
    for (const cpu::QuantKernels& kernels : cpu::all_quant_kernels()) {
      if (!kernels.available()) continue;
      const auto forced =
          cpu::make_quant_gemm(kernels, cpu::best_kernels(), RowPrecision::automatic);
      for (float sign : {1.0f, -1.0f}) {
        for (float& value : x) value = sign * 127.0f;
        std::vector<float> out(96, -1.0f);
        alignas(64) static std::byte workspace[1 << 16];
        const Status status = forced->run(spec, {.hidden = {x.data(), DType::f32, {1, 96}},
                                                 .top_k = 1,
                                                 .groups = {&group, 1},
                                                 .pairs = &pair,
                                                 .out = out.data(),
                                                 .workspace = workspace});
        REQUIRE(status.ok());
        const double between = std::max(0.0, static_cast<double>(sign) * 96 * 127 * weight);
        INFO(kernels.name << " " << to_string(kind) << " " << sign);
        CHECK(out[5] == Approx(32 * between * weight).epsilon(1e-6));
      }
    }
  }
}

TEST_CASE("a row that is not finite makes its own result NaN and no other's", "[gemm]") {
  const auto gemm = best(RowPrecision::automatic);
  Prepared prepared = prepare(
      {.spec = {.hidden = 70, .intermediate = 40, .format = {FormatKind::int4, 32, DType::bf16}},
       .experts = 1,
       .top_k = 1,
       .tokens = 3,
       .one_expert = true,
       .seed = seed()});
  const Slots slots(*gemm, prepared);
  const auto before = run(*gemm, prepared, slots);
  reinterpret_cast<float*>(prepared.hidden.data())[70 + 33] = NAN;
  const auto after = run(*gemm, prepared, slots);
  for (int64_t i = 0; i < 70; ++i) {
    CHECK(after[i] == before[i]);
    CHECK(std::isnan(after[70 + i]));
    CHECK(after[140 + i] == before[140 + i]);
  }
}

TEST_CASE("float weights are quantised while they are packed", "[gemm][mission-46]") {
  for (const Format& format :
       {Format{FormatKind::int8, 0, DType::bf16}, Format{FormatKind::int4, 32, DType::bf16},
        Format{FormatKind::int4, 128, DType::f16, true}}) {
    const ExpertSpec spec{.hidden = 300, .intermediate = 70, .bias = true, .format = format};
    FloatWeights source(spec);
    const auto gemm = best(RowPrecision::automatic);
    std::vector<std::byte> slot(gemm->layout(spec).bytes + 64);
    REQUIRE(gemm->pack(spec, source, 3, 1, slot.data()).ok());
    source.poison = WeightKind::down;
    const Status status = gemm->pack(spec, source, 3, 1, slot.data());
    CHECK(status.code() == StatusCode::data_loss);
    CHECK(status.place().tensor == "down");
    CHECK(status.place().expert == 1);
    CHECK(status.message() == "a weight is nan; it cannot be quantised");
  }
}

TEST_CASE("a slot's bytes are what its format says", "[gemm][mission-42][mission-43]") {
  const auto bits = [](const Format& format, bool bias = false) {
    const ExpertSpec spec{.hidden = 2048, .intermediate = 1024, .bias = bias, .format = format};
    return 8.0 * best(RowPrecision::automatic)->layout(spec).bytes / (3 * 2048 * 1024);
  };
  CHECK(bits({FormatKind::int4, 32, DType::bf16}) == 4.5);
  CHECK(bits({FormatKind::int4, 128, DType::f16}) == 4.125);
  CHECK(bits({FormatKind::int4, 128, DType::f16, true}) == 4.1875);
  CHECK(bits({FormatKind::int8, 32, DType::bf16}) == 8.5);
  CHECK(bits({FormatKind::int8, 0, DType::bf16}) < 8.02);
  const auto gemm = best(RowPrecision::automatic);
  const auto named = [&](const Format& format) {
    return gemm->layout({.hidden = 64, .intermediate = 32, .format = format}).name;
  };
  CHECK(named({FormatKind::int4, 32, DType::f16}) == "cpu-panels16-int4-g32-f16");
  CHECK(named({FormatKind::int4, 32, DType::f16, true}) !=
        named({FormatKind::int4, 32, DType::f16}));
}

TEST_CASE("groups that no layout holds are refused with their place", "[gemm][mission-43]") {
  struct Crowded final : WeightSource {
    explicit Crowded(const ExpertSpec& spec) : weights(spec, 1, seed()) {}
    const std::vector<LayerSpec>& layers() const noexcept override { return weights.layers(); }
    Result<TensorShape> describe(const WeightId& id) const override { return weights.describe(id); }
    Status read(const WeightId& id, const MutableTensorView& out) const override {
      const Status status = weights.read(id, out);
      if (id.kind == changed) change(static_cast<int32_t*>(out.data));
      return status;
    }
    std::string_view name() const noexcept override { return "crowded"; }
    RandomWeights weights;
    WeightKind changed = WeightKind::router_weight;
    void (*change)(int32_t*) = nullptr;
  };
  const ExpertSpec spec{
      .hidden = 64, .intermediate = 64, .format = {FormatKind::int4, 32, DType::f16, false, true}};
  Crowded source(spec);
  const auto gemm = best(RowPrecision::automatic);
  std::vector<std::byte> slot(gemm->layout(spec).bytes + 64);
  REQUIRE(gemm->pack(spec, source, 3, 0, slot.data()).ok());
  source.changed = WeightKind::down_group;
  source.change = [](int32_t* groups) { std::fill_n(groups, 33, 1); };
  const Status crowded = gemm->pack(spec, source, 3, 0, slot.data());
  CHECK(crowded.code() == StatusCode::unimplemented);
  CHECK(crowded.message().find("has more inputs than its 32") != std::string_view::npos);
  CHECK(crowded.place().tensor == "down");
  source.changed = WeightKind::up_group;
  source.change = [](int32_t* groups) { std::reverse(groups, groups + 64); };
  const Status other = gemm->pack(spec, source, 3, 0, slot.data());
  CHECK(other.code() == StatusCode::unimplemented);
  CHECK(other.place().tensor == "up");
  source.change = [](int32_t* groups) { groups[9] = -1; };
  const Status wild = gemm->pack(spec, source, 3, 0, slot.data());
  CHECK(wild.code() == StatusCode::data_loss);
  CHECK(wild.message() == "input 9 is in group -1; there are 2");
}
