// Synthetic experts that are computed on the GPU: the bytes that the host would have packed.
#include <atomic>

#include "catch.h"
#include "checkpoint/generated.h"
#include "cuda/pair.h"
#include "gemm/reference.h"
#include "moe/checkpoint.h"
#include "moe/moe.h"

namespace {

using namespace moe;
using namespace moe::cuda::test;
using moe::test::Random;
using moe::test::skip;

// The same weights, of which nobody knows that they could be computed.
class Plain final : public WeightSource {
 public:
  explicit Plain(const WeightSource& inner) : inner_(inner) {}
  const std::vector<LayerSpec>& layers() const noexcept override { return inner_.layers(); }
  Result<TensorShape> describe(const WeightId& id) const override { return inner_.describe(id); }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    ++reads;
    return inner_.read(id, out);
  }
  std::string_view name() const noexcept override { return inner_.name(); }
  mutable std::atomic<int> reads{0};

 private:
  const WeightSource& inner_;
};

std::vector<uint64_t> digests(const Model& model) {
  std::vector<uint64_t> all;
  for (const LayerSpec& spec : model.layers())
    for (int32_t e = spec.shared ? kSharedExpert : 0; e < spec.router.num_experts; ++e)
      all.push_back(must(model.store().health(spec.layer, e)).digest);
  return all;
}

}  // namespace

TEST_CASE("experts computed on the GPU are those that the host packs", "[cuda]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(moe::test::seed());
  // With a tensor per expert, all in one, transposed ones with biases, not gated, shared ones.
  for (const char* family : {"mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "llama4_text",
                             "dbrx", "granitemoe", "nemotron_h"})
    for (const DType dtype : {DType::bf16, DType::f16, DType::f32, DType::f8_e4m3}) {
      SyntheticSpec spec{.family = family, .dtype = dtype};
      spec.layers = 2;
      spec.experts = 6;
      spec.top_k = 2;
      spec.hidden = 8 * random.between(2, 30);
      spec.intermediate =
          dtype == DType::f8_e4m3 ? 128 * random.between(1, 2) : 8 * random.between(1, 30);
      spec.seed = static_cast<uint64_t>(random.between(0, 1 << 30));
      CAPTURE(family, to_string(dtype), spec.hidden, spec.intermediate, spec.seed);
      const auto source = must(make_synthetic(spec));
      REQUIRE(dynamic_cast<const GeneratedWeights*>(source.get()));
      const Plain plain(*source);
      const Model made = must(Model::create(*source, {.device = kGpu}));
      const Model packed = must(Model::create(plain, {.device = kGpu}));
      CHECK(plain.reads > 12);
      CHECK(digests(made) == digests(packed));
    }
}

TEST_CASE("a layer of DeepSeek-V3's size is made on the GPU and right on sampled rows",
          "[cuda][slow]") {
  if (!have_gpu()) return skip(kNoGpu);
  for (const DType dtype : {DType::bf16, DType::f8_e4m3}) {
    SyntheticSpec spec = must(synthetic_like("deepseek-v3"));
    spec.layers = 1;
    spec.dtype = dtype;
    const auto source = must(make_synthetic(spec));
    const LayerSpec layer = source->layers().front();
    Model model = must(
        Model::create(*source, {.device = kGpu, .gemm_options = {.rows = RowPrecision::exact}}));
    const OwnStream stream;
    Context context = must(Context::create(model, {.stream = cuda_stream(stream.stream)}));
    Random random(moe::test::seed());
    constexpr int64_t kTokens = 300;
    const int32_t top_k = layer.router.top_k;
    const HostRows hidden(random, kTokens, layer.hidden(), DType::bf16);
    const DeviceRows in(hidden), out(hidden);
    const Buffer<int32_t> ids(kTokens * top_k);
    const Buffer<float> weights(kTokens * top_k);
    Routing routing{kTokens, top_k, ids.data(), weights.data()};
    must(model.forward(context, layer.layer, in.view(), out.mutable_view(),
                       {.routing_out = &routing}));
    MOE_CHECK(cudaStreamSynchronize(stream.stream));
    const HostRows got = out.host();
    Error error;
    for (const int64_t row : {int64_t{0}, kTokens - 1}) {
      std::vector<int32_t> chosen = ids.host(row * top_k, top_k);
      std::vector<float> factors = weights.host(row * top_k, top_k);
      const Routing one{1, top_k, chosen.data(), factors.data()};
      std::vector<double> wanted(static_cast<size_t>(layer.hidden()));
      const TensorView x(hidden.bytes.data() + row * layer.hidden() * 2, DType::bf16,
                         {1, layer.hidden()});
      must(block_forward_reference(*source, layer.layer, x, one, wanted.data()));
      for (int64_t h = 0; h < layer.hidden(); ++h)
        error.add(got.at(row, h), wanted[static_cast<size_t>(h)]);
    }
    std::printf("DeepSeek-V3, %s: sampled rows %.2e from double precision\n", to_string(dtype),
                error.relative());
    CHECK(error.relative() < 1e-2);
  }
}
