// Brings its own expert backend: plain loops over gate, up and down. A slot holds them as f32.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include <moe/moe.h>
using namespace moe;

static float dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(a[i]) * b[i];
  return static_cast<float>(sum);
}

class PlainGemm final : public ExpertGemm {
 public:
  const char* name() const noexcept override { return "plain"; }
  Status supports(const ExpertSpec& spec) const override {
    const bool fits = spec.gated && !spec.bias && spec.activation == Activation::silu;
    return fits ? Status() : Status(StatusCode::unimplemented, "plain: only gated silu, no bias");
  }
  SlotLayout layout(const ExpertSpec& spec) const override {
    return {"plain-f32", 3 * sizeof(float) * size_t(spec.hidden * spec.intermediate)};
  }
  Status pack(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
              std::byte* slot) const override {
    auto* to = reinterpret_cast<float*>(slot);
    for (WeightKind kind : {WeightKind::gate, WeightKind::up, WeightKind::down}) {
      Dims shape = {spec.intermediate, spec.hidden};
      if (kind == WeightKind::down) shape = {spec.hidden, spec.intermediate};
      const Status status = source.read({layer, kind, expert}, {to, DType::f32, shape});
      if (!status.ok()) return status;
      to += shape.elements();
    }
    return {};
  }
  size_t workspace_bytes(const ExpertSpec& spec, int64_t, int64_t, int) const noexcept override {
    return sizeof(float) * size_t(spec.intermediate);
  }
  Status run(const ExpertSpec& spec, const ExpertBatch& batch) const override {
    const int64_t H = spec.hidden, I = spec.intermediate;
    auto* inner = reinterpret_cast<float*>(batch.workspace.data());
    for (const ExpertGroup& group : batch.groups) {
      const auto *gate = reinterpret_cast<const float*>(group.slot), *up = gate + I * H,
                 *down = up + I * H;
      for (int64_t i = group.first; i < group.first + group.count; ++i) {
        const int64_t pair = batch.pairs[i], row = pair / batch.top_k;
        const auto* x =
            static_cast<const float*>(batch.hidden.data) + row * batch.hidden.strides[0];
        for (int64_t n = 0; n < I; ++n) {
          const float g = dot(gate + n * H, x, H);
          inner[n] = g / (1 + std::exp(-g)) * dot(up + n * H, x, H);
        }
        for (int64_t n = 0; n < H; ++n) batch.out[pair * H + n] = dot(down + n * I, inner, I);
      }
    }
    return {};
  }
};

int main() {
  const auto weights = make_synthetic({.layers = 1, .dtype = DType::f32});
  if (!weights.ok()) return 1;
  const PlainGemm plain;
  std::vector<float> hidden(3 * 64, 0.5f), out[2] = {hidden, hidden};
  const ExpertGemm* const backends[] = {&plain, nullptr};  // null: the built-in one
  for (const ExpertGemm* gemm : backends) {
    auto model = Model::create(**weights, {.expert_gemm = gemm});
    if (!model.ok()) return 1;
    const MutableTensorView to = {out[gemm == nullptr].data(), DType::f32, {3, 64}};
    if (!model->forward(0, {hidden.data(), DType::f32, {3, 64}}, to).ok()) return 1;
  }
  double worst = 0;
  for (size_t i = 0; i < hidden.size(); ++i)
    worst = std::max(worst, std::abs(double(out[0][i]) - out[1][i]));
  std::printf("largest difference from the built-in backend: %g\n", worst);
  return worst < 1e-5 * std::sqrt(dot(out[1].data(), out[1].data(), 64)) ? 0 : 1;
}
