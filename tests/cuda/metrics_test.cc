// What a model on a GPU counts, replays of graphs included, beside the CPU's counts.
#include "moe/metrics.h"

#include "catch.h"
#include "cuda/host.h"
#include "moe/moe.h"

namespace {

using namespace moe;
using namespace moe::cuda::test;
using moe::test::Random;
using moe::test::RandomModel;
using moe::test::skip;
using HostRows = moe::test::Rows;

void check_equal(const LayerMetrics& gpu, const LayerMetrics& cpu, int64_t times = 1) {
  CHECK(gpu.layer == cpu.layer);
  CHECK(gpu.forwards == cpu.forwards * times);
  CHECK(gpu.rows == cpu.rows * times);
  CHECK(gpu.assignments == cpu.assignments * times);
  CHECK(gpu.nonfinite_rows == cpu.nonfinite_rows * times);
  CHECK(gpu.dropped == cpu.dropped * times);
  REQUIRE(gpu.expert_rows.size() == cpu.expert_rows.size());
  for (size_t e = 0; e < cpu.expert_rows.size(); ++e) {
    CAPTURE(e);
    CHECK(gpu.expert_rows[e] == cpu.expert_rows[e] * times);
  }
}

// Logits that both devices read, so that both choose alike; some rows are not finite.
HostRows logits_for(Random& random, int64_t tokens, int32_t candidates) {
  HostRows logits(random, tokens, candidates, DType::f32);
  for (int64_t t = 0; t < tokens; t += 7)
    store_float(DType::f32, logits.bytes.data(), t * logits.stride + t % candidates, NAN);
  return logits;
}

}  // namespace

TEST_CASE("the GPU counts what the CPU counts, for every expert", "[cuda][small]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  PlainMemory memory;
  for (const int64_t capacity : {0, 2}) {
    std::vector<LayerSpec> specs = {plain_layer(1, 20, 4), plain_layer(5, 6, 2)};
    for (LayerSpec& spec : specs) spec.router.capacity = capacity;
    RandomModel source(specs, random, DType::bf16);
    Model cpu = must(Model::create(source.source()));
    Model gpu = must(Model::create(source.source(), {.device = kGpu}));
    const size_t slot = gpu.store().stats().slot_bytes;
    Model paged = must(Model::create(
        source.source(),
        {.device = kGpu, .expert_memory = 9 * slot, .host = {.device_memory = &memory}}));
    Context context = must(Context::create(gpu, {.stream = cuda_stream(stream.stream)}));
    Context pages = must(Context::create(paged, {.stream = cuda_stream(stream.stream)}));
    for (const LayerSpec& spec : specs)
      for (const int64_t tokens : {1, 5, 16, 40, 64, 65, 300}) {
        const HostRows hidden(random, tokens, 64, DType::bf16);
        const HostRows logits = logits_for(random, tokens, spec.router.num_experts);
        HostRows out(random, tokens, 64, DType::bf16);
        const DeviceRows in(hidden), there(logits), to(hidden), to_paged(hidden);
        must(cpu.forward(spec.layer, hidden.view(), out.mutable_view(),
                         {.router_logits = logits.view()}));
        must(gpu.forward(context, spec.layer, in.view(), to.mutable_view(),
                         {.router_logits = there.view()}));
        must(paged.forward(pages, spec.layer, in.view(), to_paged.mutable_view(),
                           {.router_logits = there.view()}));
        MOE_CHECK(cudaStreamSynchronize(stream.stream));
      }
    const Metrics wanted = metrics(cpu);
    for (const Model* model : {&gpu, &paged}) {
      const Metrics got = metrics(*model);
      CHECK(got.forwards == wanted.forwards);
      REQUIRE(got.layers.size() == wanted.layers.size());
      for (size_t i = 0; i < got.layers.size(); ++i) check_equal(got.layers[i], wanted.layers[i]);
    }
  }
}

TEST_CASE("replays of a graph count too", "[cuda][small]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  RandomModel source({plain_layer(0, 16, 4)}, random, DType::bf16);
  Model cpu = must(Model::create(source.source()));
  Model gpu = must(Model::create(source.source(), {.device = kGpu}));
  for (const int64_t tokens : {3, 100}) {
    CAPTURE(tokens);
    Context context =
        must(Context::create(gpu, {.stream = cuda_stream(stream.stream), .max_tokens = tokens}));
    const HostRows hidden(random, tokens, 64, DType::bf16);
    const HostRows logits = logits_for(random, tokens, 16);
    HostRows out(random, tokens, 64, DType::bf16);
    const DeviceRows in(hidden), there(logits), to(hidden);
    const LayerMetrics cpu_before = metrics(cpu).layers[0], gpu_before = metrics(gpu).layers[0];
    must(cpu.forward(0, hidden.view(), out.mutable_view(), {.router_logits = logits.view()}));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    MOE_CHECK(cudaStreamBeginCapture(stream.stream, cudaStreamCaptureModeGlobal));
    must(gpu.forward(context, 0, in.view(), to.mutable_view(), {.router_logits = there.view()}));
    CHECK(metrics(gpu).layers[0].forwards == gpu_before.forwards);  // captured, not computed
    MOE_CHECK(cudaStreamEndCapture(stream.stream, &graph));
    MOE_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < 10; ++i) MOE_CHECK(cudaGraphLaunch(exec, stream.stream));
    MOE_CHECK(cudaStreamSynchronize(stream.stream));
    LayerMetrics got = metrics(gpu).layers[0], want = metrics(cpu).layers[0];
    const auto subtract = [](LayerMetrics& from, const LayerMetrics& before) {
      from.forwards -= before.forwards;
      from.rows -= before.rows;
      from.assignments -= before.assignments;
      from.nonfinite_rows -= before.nonfinite_rows;
      from.dropped -= before.dropped;
      for (size_t e = 0; e < from.expert_rows.size(); ++e)
        from.expert_rows[e] -= before.expert_rows[e];
    };
    subtract(got, gpu_before);
    subtract(want, cpu_before);
    check_equal(got, want, 10);
    MOE_CHECK(cudaGraphExecDestroy(exec));
    MOE_CHECK(cudaGraphDestroy(graph));
  }
}
