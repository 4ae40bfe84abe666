#include <algorithm>
#include <cmath>

#include "catch.h"
#include "gemm/problems.h"

using namespace moe;
using namespace moe::test;

namespace {

// What a host writes to bring its own: silu experts, canonical f32 slots, plain loops.
class PlainGemm final : public ExpertGemm {
 public:
  const char* name() const noexcept override { return "plain"; }
  Status supports(const ExpertSpec& spec) const override {
    if (spec.gated && !spec.bias && spec.activation == Activation::silu) return {};
    return Status(StatusCode::unimplemented, "plain computes gated silu without bias");
  }
  SlotLayout layout(const ExpertSpec& spec) const override {
    return {"plain", static_cast<size_t>(3 * spec.hidden * spec.intermediate) * sizeof(float), 4};
  }
  Status pack(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
              std::byte* slot) const override {
    for (WeightKind kind : {WeightKind::gate, WeightKind::up, WeightKind::down}) {
      const WeightId id{layer, kind, expert};
      const auto shape = source.describe(id);
      if (!shape.ok()) return shape.status();
      const MutableTensorView view(slot, DType::f32, shape->shape);
      if (Status status = source.read(id, view); !status.ok()) return status;
      slot += spec.hidden * spec.intermediate * sizeof(float);
    }
    return {};
  }
  size_t workspace_bytes(const ExpertSpec&, int64_t, int64_t, int) const noexcept override {
    return 0;
  }
  Status run(const ExpertSpec& spec, const ExpertBatch& batch) const override {
    const int64_t hidden = spec.hidden, wide = spec.intermediate;
    for (const ExpertGroup& group : batch.groups)
      for (int64_t n = group.first; n < group.first + group.count; ++n) {
        const int64_t pair = batch.pairs[n];
        const auto* gate = reinterpret_cast<const float*>(group.slot);
        const float *up = gate + hidden * wide, *down = up + hidden * wide;
        const float* x = static_cast<const float*>(batch.hidden.data) +
                         pair / batch.top_k * batch.hidden.strides[0];
        float* y = batch.out + pair * hidden;
        std::fill_n(y, hidden, 0.0f);
        for (int64_t i = 0; i < wide; ++i) {
          float g = 0, u = 0;
          for (int64_t j = 0; j < hidden; ++j) {
            g += gate[i * hidden + j] * x[j];
            u += up[i * hidden + j] * x[j];
          }
          for (int64_t j = 0; j < hidden; ++j)
            y[j] += down[j * wide + i] * (g / (1 + std::exp(-g)) * u);
        }
      }
    return {};
  }
};

}  // namespace

TEST_CASE("a host's own backend goes through the same interface", "[gemm][mission-38]") {
  const PlainGemm gemm;
  const Prepared prepared = prepare(
      {.spec = {.hidden = 40, .intermediate = 24, .format = {FormatKind::f32}}, .seed = seed()});
  const Slots slots(gemm, prepared);
  CHECK(error_against_reference(prepared, run(gemm, prepared, slots)) <= 2e-6);
  CHECK_FALSE(gemm.supports({.activation = Activation::gelu}).ok());
}

TEST_CASE("the table is visible, ordered, and one row of it can be forced", "[gemm][mission-38]") {
  const auto rows = expert_gemm_rows();
  REQUIRE_FALSE(rows.empty());
  CHECK(std::string_view(rows.back().name) == "reference");
  const ExpertSpec spec{.hidden = 8, .intermediate = 8};
  const auto best = make_expert_gemm(Device::cpu(), spec);
  REQUIRE(best.ok());
  const auto forced = make_expert_gemm(Device::cpu(), spec, "reference");
  REQUIRE(forced.ok());
  CHECK(std::string_view((*forced)->name()) == "reference");
}

TEST_CASE("a failure names each row and its reason", "[gemm][mission-121]") {
  ExpertSpec spec{.hidden = 8, .intermediate = 8, .format = {FormatKind::mxfp4, 32}};
  const auto unserved = make_expert_gemm(Device::cpu(), spec);
  REQUIRE_FALSE(unserved.ok());
  CHECK(unserved.status().code() == StatusCode::unimplemented);
  CHECK(unserved.status().message().find(
            "cpu_quant: weights are mxfp4 (group 32); cpu_quant computes from int8 and int4") !=
        std::string_view::npos);
  const auto unknown = make_expert_gemm(Device::cpu(), spec, "abacus");
  CHECK(unknown.status().code() == StatusCode::not_found);
  CHECK(unknown.status().message().find("\"abacus\"") != std::string_view::npos);
  CHECK(unknown.status().message().find("reference (cpu)") != std::string_view::npos);
}
