// Model::forward on a GPU over fp8 weights in 128 x 128 blocks: beside the CPU, which dequantises
// them; mixed with other formats; paged; and what is refused.
#include <limits>

#include "catch.h"
#include "cuda/pair.h"
#include "model/random_model.h"

namespace {

using namespace moe;
using namespace moe::cuda::test;
using moe::test::Random;
using moe::test::RandomModel;
using moe::test::skip;

constexpr Format kBlocks = {FormatKind::fp8_block, 128};

ExpertSpec random_expert(Random& random, int64_t hidden, bool fp8, bool gated, bool bias) {
  ExpertSpec expert;
  expert.hidden = hidden;
  expert.intermediate = random.between(1, 300);
  expert.gated = gated;
  expert.bias = bias;
  expert.format = fp8 ? kBlocks : Format{FormatKind::bf16, 0};
  if (fp8 && random.chance(0.3)) expert.format.scale = DType::bf16;
  return expert;
}

// Routed experts, the shared expert or both are fp8.
LayerSpec random_fp8_layer(Random& random) {
  const int64_t which = random.between(0, 2), hidden = random.between(1, 400);
  const bool gated = random.chance(0.8), bias = random.chance(0.3);
  LayerSpec spec;
  spec.layer = 0;
  spec.router.num_experts = static_cast<int32_t>(random.one_of({1, 2, 8, 40}));
  spec.router.top_k = static_cast<int32_t>(random.between(1, std::min(4, spec.router.num_experts)));
  spec.router.weight_on_input = random.chance(0.15);
  spec.expert = random_expert(random, hidden, which != 1, gated, bias);
  if (which == 0 && random.chance(0.5)) return spec;
  spec.shared.emplace();
  spec.shared->expert = random_expert(random, hidden, which != 0, gated, bias);
  spec.shared->sigmoid_gate = random.chance(0.5);
  return spec;
}

LayerSpec plain_fp8_layer() {
  LayerSpec spec;
  spec.layer = 0;
  spec.router.num_experts = 16;
  spec.router.top_k = 4;
  spec.expert = {.hidden = 192, .intermediate = 144};
  spec.expert.format = kBlocks;
  return spec;
}

}  // namespace

TEST_CASE("fp8 layers on the GPU equal the CPU's", "[cuda][mission-41]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(moe::test::seed());
  const OwnStream stream;
  for (int round = 0; round < 24; ++round) {
    const LayerSpec spec = random_fp8_layer(random);
    const RandomModel source({spec}, random, DType::bf16);
    const int64_t tokens = random.one_of({1, 3, 17, 65, 300});
    const HostRows hidden(random, tokens, spec.hidden(), DType::bf16, random.between(0, 9));
    for (const RowPrecision rows :
         {RowPrecision::exact, RowPrecision::automatic, RowPrecision::fast}) {
      CAPTURE(round, tokens, spec.router.num_experts, spec.router.top_k, spec.expert.hidden,
              spec.expert.intermediate, spec.expert.gated, spec.expert.bias,
              to_string(spec.expert.format.kind), spec.shared.has_value(),
              spec.router.weight_on_input, int(rows));
      Pair models(source.source(), {.gemm_options = {.rows = rows}});
      // Of few values one that e4m3 rounds badly weighs.
      const double bound = rows == RowPrecision::exact      ? 1e-2
                           : spec.expert.intermediate < 256 ? 1e-1
                                                            : 7e-2;
      CHECK(run_both(models, 0, hidden, DType::f32, {}, random, stream.stream) < bound);
    }
  }
}

TEST_CASE("paged fp8 experts on the GPU give the resident ones' answer",
          "[cuda][moving][mission-41]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(moe::test::seed());
  const OwnStream stream;
  const LayerSpec spec = plain_fp8_layer();
  const RandomModel source({spec}, random, DType::bf16);
  Model all = must(Model::create(source.source(),
                                 {.device = kGpu, .gemm_options = {.rows = RowPrecision::exact}}));
  Model paged = must(Model::create(
      source.source(), {.device = kGpu, .expert_memory = 7 * all.store().stats().slot_bytes}));
  Context a = must(Context::create(all, {.stream = cuda_stream(stream.stream)}));
  Context b = must(Context::create(paged, {.stream = cuda_stream(stream.stream)}));
  for (const int64_t tokens : {1, 3, 80, 500}) {
    CAPTURE(tokens);
    const HostRows hidden(random, tokens, spec.hidden(), DType::bf16);
    const DeviceRows in(hidden), resident(hidden), waves(hidden);
    must(all.forward(a, 0, in.view(), resident.mutable_view()));
    must(paged.forward(b, 0, in.view(), waves.mutable_view()));
    MOE_CHECK(cudaStreamSynchronize(stream.stream));
    CHECK(distance(waves.host(), resident.host(), tokens) < 1e-2);
  }
  CHECK(paged.store().stats().paging.misses > 0);
}

TEST_CASE("a graph of an fp8 layer repeats its bits", "[cuda][mission-41]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(moe::test::seed());
  const OwnStream stream;
  const LayerSpec spec = plain_fp8_layer();
  const RandomModel source({spec}, random, DType::bf16);
  Model model = must(Model::create(source.source(), {.device = kGpu}));
  for (const int64_t tokens : {2, 200}) {
    Context context =
        must(Context::create(model, {.stream = cuda_stream(stream.stream), .max_tokens = tokens}));
    const HostRows hidden(random, tokens, spec.hidden(), DType::bf16);
    const DeviceRows in(hidden), out(hidden);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    MOE_CHECK(cudaStreamBeginCapture(stream.stream, cudaStreamCaptureModeThreadLocal));
    must(model.forward(context, 0, in.view(), out.mutable_view()));
    MOE_CHECK(cudaStreamEndCapture(stream.stream, &graph));
    MOE_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<std::byte> first;
    int different = 0;
    for (int i = 0; i < 100; ++i) {
      MOE_CHECK(cudaGraphLaunch(exec, stream.stream));
      MOE_CHECK(cudaStreamSynchronize(stream.stream));
      const std::vector<std::byte> bytes = out.host().bytes;
      if (i == 0) first = bytes;
      different += bytes != first;
    }
    CHECK(different == 0);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  }
}

TEST_CASE("bad fp8 weights and other blocks are refused by name on the GPU", "[cuda][mission-47]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(moe::test::seed());
  LayerSpec spec = plain_fp8_layer();
  for (const float scale : {NAN, INFINITY, 0.0f, 1e-41f}) {
    RandomModel source({spec}, random, DType::bf16);
    std::memcpy(source.bytes({0, WeightKind::up_scale, 5}).data() + 4, &scale, 4);
    const auto model = Model::create(source.source(), {.device = kGpu});
    REQUIRE_FALSE(model.ok());
    INFO(model.status().message());
    CHECK(model.status().code() == StatusCode::data_loss);
    CHECK(model.status().place().expert == 5);
    CHECK(model.status().place().tensor.starts_with("up"));
  }
  for (const int32_t group : {0, 64}) {
    spec.expert.format.group = group;
    const RandomModel source({spec}, random, DType::bf16);
    const auto model = Model::create(source.source(), {.device = kGpu});
    REQUIRE_FALSE(model.ok());
    INFO(model.status().message());
    CHECK(model.status().code() == StatusCode::unimplemented);
    CHECK(model.status().message().find("128 x 128") != std::string_view::npos);
  }
}
