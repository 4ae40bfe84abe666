#include "gemm/reference.h"

#include <cmath>

#include "catch.h"
#include "gemm/problems.h"
#include "quant/half.h"

using namespace moe;

namespace {

// Two experts of hidden 2, intermediate 1, and a shared one, small enough to compute by hand.
class TwoExperts final : public WeightSource {
 public:
  explicit TwoExperts(const LayerSpec& spec) : layers_{spec} {}
  const std::vector<LayerSpec>& layers() const noexcept override { return layers_; }
  Result<TensorShape> describe(const WeightId& id) const override {
    const Dims shape = id.kind == WeightKind::down ? Dims{2, 1} : Dims{1, 2};
    return TensorShape{DType::f32, shape, row_major(shape), {}};
  }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    auto* v = static_cast<float*>(out.data);
    const float scale =
        id.kind == WeightKind::shared_gate ? 0.0f : static_cast<float>(id.expert + 2);
    v[0] = scale;
    v[1] = id.kind == WeightKind::up ? -scale : scale;
    return {};
  }
  std::string_view name() const noexcept override { return "two experts"; }

 private:
  std::vector<LayerSpec> layers_;
};

LayerSpec two_experts() {
  LayerSpec spec;
  spec.layer = 7;
  spec.router.num_experts = 2;
  spec.router.num_zero_experts = 1;
  spec.router.top_k = 3;
  spec.expert = {.hidden = 2, .intermediate = 1, .activation = Activation::relu, .gated = false};
  return spec;
}

}  // namespace

TEST_CASE("activations equal their formulas at known points", "[gemm]") {
  const auto at = [](Activation activation, double g, double u, bool gated = true) {
    return activate_reference({.activation = activation, .gated = gated, .limit = 7}, g, u);
  };
  CHECK(at(Activation::silu, 1, 2) == Approx(2 / (1 + std::exp(-1.0))));
  CHECK(at(Activation::gelu, 1, 1) == Approx(0.8413447460685429));
  CHECK(at(Activation::gelu_tanh, 1, 1) == Approx(0.8411919906082768));
  CHECK(at(Activation::relu, 99, -1, false) == 0);
  CHECK(at(Activation::relu2, 99, 3, false) == 9);
  CHECK(at(Activation::relu2, 2, 3) == 12);
  // g is clamped from above only, u on both sides.
  CHECK(at(Activation::swiglu_oai, 100, -100) == Approx(-6 * 7 / (1 + std::exp(-1.702 * 7))));
  CHECK(at(Activation::swiglu_oai, -100, 100) == Approx(0).margin(1e-60));
  CHECK(at(Activation::swiglu_oai, -1, 0) == Approx(-1 / (1 + std::exp(1.702))));
  CHECK(at(Activation::swiglu_step, 100, 100) == 49);
  CHECK(at(Activation::swiglu_step, -1, -8) == Approx(7 / (1 + std::exp(1.0))));
}

TEST_CASE("a block sums its experts, zero experts and shared expert", "[gemm]") {
  // Expert e has s = e + 2: up = (s, -s), down = (s, s): y = s * relu(s * (x0 - x1)) twice.
  LayerSpec spec = two_experts();
  const float hidden[] = {3, 1};
  const int32_t ids[] = {1, 2, 0};
  const float weights[] = {0.5f, 10, 0.25f};
  const Routing routing{1, 3, const_cast<int32_t*>(ids), const_cast<float*>(weights)};
  const TensorView view(hidden, DType::f32, {1, 2});
  double out[2] = {-1, -1};

  REQUIRE(block_forward_reference(TwoExperts(spec), 7, view, routing, out).ok());
  CHECK(out[0] == 0.25 * 8 + 0.5 * 18 + 10 * 3);
  CHECK(out[1] == 0.25 * 8 + 0.5 * 18 + 10 * 1);

  spec.router.weight_on_input = true;  // relu is homogeneous, so squares of nothing change here
  spec.expert.activation = Activation::relu2;
  REQUIRE(block_forward_reference(TwoExperts(spec), 7, view, routing, out).ok());
  CHECK(out[0] == 2 * 1 + 3 * 9 + 10 * 3);  // s * (s * 2 * weight)^2

  spec.router.weight_on_input = false;
  spec.expert.activation = Activation::relu;
  spec.shared = SharedSpec{
      .expert = spec.expert, .sigmoid_gate = true, .routed_scale = 0.5f, .shared_scale = 3};
  REQUIRE(block_forward_reference(TwoExperts(spec), 7, view, routing, out).ok());
  CHECK(out[0] == 0.5 * 41 + 3 * 0.5 * 2);  // the gate's weights are 0: sigmoid 0.5
}

TEST_CASE("what cannot be computed is refused", "[gemm][mission-121]") {
  const TwoExperts source(two_experts());
  const float hidden[] = {3, 1};
  int32_t id = 3;
  float weight = 1;
  double out[2];
  const TensorView view(hidden, DType::f32, {1, 2});
  const auto status = block_forward_reference(source, 7, view, {1, 1, &id, &weight}, out);
  CHECK(status.message() == "expert 3 was chosen; the layer has 3 candidates");
  CHECK(block_forward_reference(source, 8, view, {1, 1, &id, &weight}, out).code() ==
        StatusCode::not_found);
  const TensorView wide(hidden, DType::f32, {2, 1});
  CHECK(block_forward_reference(source, 7, wide, {1, 1, &id, &weight}, out).message() ==
        "hidden is (2, 1) f32; wanted (1, 2) of a float type");
  const auto shape = read_f32(source, {7, WeightKind::up, 0}, {4, 2});
  CHECK(shape.status().message() == "shape is [1, 2]; the layer's spec says [4, 2]");
}
