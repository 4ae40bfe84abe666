// Model::forward on a GPU: the published models' answers, every option against the CPU's forward,
// graphs that stay valid while tables change, and what is refused.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <thread>

#include "catch.h"
#include "cuda/pair.h"
#include "cuda/plain_bf16.h"
#include "model/golden.h"
#include "moe/moe.h"
#include "store/store_impl.h"

namespace {

using namespace moe;
using namespace moe::cuda::test;
using moe::test::Random;
using moe::test::RandomModel;
using moe::test::skip;

// ---- goldens

struct GoldenRun {
  Error error;  // of all rows against the fp32 answer
  Error plain;  // of plain bf16
  int blocks = 0;
};

void run_block(const WeightSource& source, Model& model, Context& context,
               const test::Golden& golden, const test::GoldenBlock& block, GoldenRun& run) {
  const auto& [layer, x, y, routing_prefix] = block;
  INFO("layer " << layer << " " << x);
  const int64_t rows = golden.tensors.at(x).shape[0], hidden = golden.tensors.at(x).shape[1];
  const int32_t top_k = must(model.layer(layer)).router.top_k;
  const Buffer<float> in(golden.read<float>(x)), out(rows * hidden);
  const Buffer<int32_t> ids(rows * top_k);
  const Buffer<float> weights(rows * top_k);
  Routing routing{rows, top_k, ids.data(), weights.data()};
  must(model.forward(context, layer, {in.data(), DType::f32, {rows, hidden}, kGpu},
                     {out.data(), DType::f32, {rows, hidden}, kGpu}, {.routing_out = &routing}));
  MOE_CHECK(cudaDeviceSynchronize());
  const auto got = out.host(), wanted = golden.read<float>(y);
  std::vector<float> plain;
  test::plain_bf16_block(source, must(model.layer(layer)), golden.read<float>(x), ids.host(),
                         weights.host(), &plain);
  for (size_t i = 0; i < wanted.size(); ++i) {
    run.error.add(got[i], wanted[i]);
    run.plain.add(plain[i], wanted[i]);
  }
  ++run.blocks;
  if (!golden.has(routing_prefix + "topk_ids")) return;
  const auto want_ids = golden.read<int64_t>(routing_prefix + "topk_ids");
  const auto got_ids = ids.host();
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<int64_t> want(want_ids.begin() + row * top_k, want_ids.begin() + (row + 1) * top_k);
    std::vector<int64_t> mine(got_ids.begin() + row * top_k, got_ids.begin() + (row + 1) * top_k);
    std::sort(want.begin(), want.end());
    std::sort(mine.begin(), mine.end());
    std::erase_if(want, [](int64_t id) { return id < 0; });
    std::erase_if(mine, [](int64_t id) { return id < 0; });
    INFO("row " << row);
    CHECK(mine == want);
  }
}

struct Bound {
  double error = 1e-2;
  double plain = 2;  // times the error of plain bf16
};

void run_folder(const std::string& folder, int families, ModelOptions options = {},
                Bound bound = {}) {
  if (!have_gpu()) return skip(kNoGpu);
  if (!test::have_shared()) return skip("goldens: the folder of --shared is absent");
  const OwnStream stream;
  int seen = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(test::shared_dir() + "/goldens/" + folder)) {
    ++seen;
    const std::string name = entry.path().filename().string();
    INFO(name);
    const Checkpoint source = must(Checkpoint::open(entry.path().string()));
    options.device = kGpu;
    Model model = must(Model::load(entry.path().string(), options));
    Context context = must(Context::create(model, {.stream = cuda_stream(stream.stream)}));
    const test::Golden golden = test::Golden::open(entry.path() / "golden.safetensors");
    GoldenRun run;
    for (const test::GoldenBlock& block : test::blocks_of(golden, model.layers()))
      run_block(source, model, context, golden, block, run);
    std::printf("golden %s/%s: %d blocks, error %.2e, plain bf16 %.2e\n", folder.c_str(),
                name.c_str(), run.blocks, run.error.relative(), run.plain.relative());
    CHECK(run.blocks >= 3);
    CHECK(run.error.relative() < bound.error);
    CHECK(run.error.relative() < bound.plain * run.plain.relative());
  }
  CHECK(seen == families);
}

// ---- the CPU beside the GPU

DType any_type(Random& random) { return random.one_of({DType::f32, DType::bf16, DType::f16}); }

}  // namespace

TEST_CASE("goldens/a on the GPU", "[cuda][golden][mission-2][mission-3]") { run_folder("a", 19); }
TEST_CASE("goldens/b on the GPU", "[cuda][golden][mission-2][mission-3]") { run_folder("b", 19); }
TEST_CASE("goldens/c on the GPU", "[cuda][golden]") { run_folder("c", 10); }
TEST_CASE("goldens/a by the portable kernels", "[cuda][golden]") {
  run_folder("a", 19, {.gemm = "cuda-portable"});
}
TEST_CASE("goldens/fp8-0 and fp8-1 on the GPU", "[cuda][golden][mission-3][mission-41]") {
  for (const char* folder : {"fp8-0", "fp8-1"}) {
    run_folder(folder, 2, {.gemm_options = {.rows = RowPrecision::exact}});
    run_folder(folder, 2, {.gemm_options = {.rows = RowPrecision::automatic}}, {7e-2, 1e9});
    run_folder(folder, 2, {.gemm_options = {.rows = RowPrecision::fast}}, {7e-2, 1e9});
  }
}

TEST_CASE("forward on the GPU equals the CPU on random layers", "[cuda][mission-138]") {
  if (!have_gpu()) return skip(kNoGpu);
  const std::string gemm = GENERATE("cuda-hopper", "cuda-portable");
  Random random(test::seed());
  const OwnStream stream;
  for (int round = 0; round < 40; ++round) {
    const DType weights = any_type(random);
    const auto experts = static_cast<int32_t>(random.one_of({1, 2, 8, 16, 60, 64, 128}));
    const auto top_k = static_cast<int32_t>(random.between(1, std::min(8, experts)));
    LayerSpec spec = test::random_layer(random, 3, weights, experts, top_k);
    if (random.chance(0.5)) {
      spec.expert.hidden = 8 * random.between(1, 40);
      if (spec.shared) spec.shared->expert.hidden = spec.expert.hidden;
    }
    RandomModel source({spec}, random, weights);
    Pair models(source.source(), {.gemm = gemm});
    const int64_t tokens = random.one_of({1, 2, 3, 7, 17, 64, 65, 128, 700});
    const HostRows hidden(random, tokens, spec.hidden(), any_type(random), random.between(0, 9));
    CAPTURE(gemm, round, experts, top_k, tokens, to_string(hidden.dtype), to_string(weights),
            spec.expert.hidden, spec.expert.intermediate, to_string(spec.expert.activation),
            spec.expert.gated, spec.expert.bias, spec.shared.has_value(),
            spec.router.num_zero_experts, spec.router.weight_on_input);
    ForwardOptions options;
    options.accumulate = random.chance(0.3);
    options.skip_shared = random.chance(0.2);
    const double bound = tokens * spec.hidden() < 64 ? 4e-2 : 1e-2;  // 1.7e-2 was seen of 2 values
    CHECK(run_both(models, 3, hidden, any_type(random), options, random, stream.stream) < bound);
  }
}

TEST_CASE("masks, logits, valid rows and other rows for the router on the GPU", "[cuda][small]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  const LayerSpec spec = plain_layer(0, 20, 4);
  RandomModel source({spec}, random, DType::bf16);
  Pair models(source.source());
  Context context = must(Context::create(models.gpu, {.stream = cuda_stream(stream.stream)}));
  for (const int64_t tokens : {5, 90}) {
    const HostRows hidden(random, tokens, 64, DType::f32),
        other(random, tokens, 64, DType::bf16, 3);
    const HostRows logits(random, tokens, 20, DType::f16, 1);
    std::vector<uint8_t> mask(static_cast<size_t>(tokens * 20));
    for (uint8_t& m : mask) m = random.chance(0.7);
    const std::vector<int64_t> valid = {tokens - 2};
    const Buffer<uint8_t> device_mask(mask);
    const Buffer<int64_t> device_valid(valid);
    const DeviceRows in(hidden), device_other(other), device_logits(logits);
    for (int what = 0; what < 4; ++what) {
      CAPTURE(tokens, what);
      ForwardOptions on_cpu, on_gpu;
      if (what == 0) on_cpu.expert_mask = mask.data(), on_gpu.expert_mask = device_mask.data();
      if (what == 1)
        on_cpu.router_logits = logits.view(), on_gpu.router_logits = device_logits.view();
      if (what == 2) on_cpu.router_input = other.view(), on_gpu.router_input = device_other.view();
      if (what == 3) on_cpu.valid_rows = valid.data(), on_gpu.valid_rows = device_valid.data();
      on_cpu.top_k = on_gpu.top_k = what == 2 ? 3 : 4;
      HostRows want(random, tokens, 64, DType::f32);
      const DeviceRows out(want);
      must(models.cpu.forward(0, hidden.view(), want.mutable_view(), on_cpu));
      must(models.gpu.forward(context, 0, in.view(), out.mutable_view(), on_gpu));
      MOE_CHECK(cudaStreamSynchronize(stream.stream));
      CHECK(distance(out.host(), want, tokens) < 1e-2);
      if (what == 3)  // rows past the valid ones are as they were
        CHECK(std::memcmp(out.host().bytes.data() + (tokens - 2) * 256,
                          want.bytes.data() + (tokens - 2) * 256, 512) == 0);
    }
  }
}

TEST_CASE("out may be hidden itself on the GPU", "[cuda][small]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  LayerSpec spec = plain_layer();
  spec.router.num_zero_experts = 3;
  RandomModel source({spec}, random, DType::bf16);
  Pair models(source.source());
  Context context = must(Context::create(models.gpu, {.stream = cuda_stream(stream.stream)}));
  for (const int64_t tokens : {9, 33}) {
    HostRows hidden(random, tokens, 64, DType::bf16);
    const DeviceRows rows(hidden);
    HostRows want = hidden;
    must(models.cpu.forward(0, hidden.view(), want.mutable_view()));
    must(models.gpu.forward(context, 0, rows.view(), rows.mutable_view()));
    MOE_CHECK(cudaStreamSynchronize(stream.stream));
    CHECK(distance(rows.host(), want, tokens) < 1.5e-2);
  }
}

TEST_CASE("a host may name an expert twice for a row on the GPU", "[cuda][small]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  RandomModel source({plain_layer(0, 6, 4)}, random, DType::bf16);
  Pair models(source.source());
  Context context = must(Context::create(models.gpu, {.stream = cuda_stream(stream.stream)}));
  for (const int64_t tokens : {1, 16, 40}) {
    const HostRows hidden(random, tokens, 64, DType::bf16);
    std::vector<int32_t> ids(static_cast<size_t>(tokens * 4));
    std::vector<float> weights(ids.size());
    for (size_t p = 0; p < ids.size(); ++p) {
      ids[p] = random.chance(0.6) ? 5 : static_cast<int32_t>(random.between(0, 6)) - 1;
      weights[p] = static_cast<float>(random.between(1, 9)) / 8;
    }
    const Buffer<int32_t> device_ids(ids);
    const Buffer<float> device_weights(weights);
    Routing on_cpu{tokens, 4, ids.data(), weights.data()};
    Routing on_gpu{tokens, 4, device_ids.data(), device_weights.data()};
    HostRows want = hidden;
    const DeviceRows in(hidden), out(hidden);
    must(models.cpu.forward(0, hidden.view(), want.mutable_view(), {.routing_in = &on_cpu}));
    must(models.gpu.forward(context, 0, in.view(), out.mutable_view(), {.routing_in = &on_gpu}));
    MOE_CHECK(cudaStreamSynchronize(stream.stream));
    CAPTURE(tokens);
    CHECK(distance(out.host(), want, tokens) < 1.5e-2);
  }
}

TEST_CASE("the report comes with the stream on the GPU", "[cuda][small][mission-36]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  RandomModel source({plain_layer()}, random, DType::bf16);
  Model model = must(Model::create(source.source(), {.device = kGpu}));
  Context context = must(Context::create(model, {.stream = cuda_stream(stream.stream)}));
  HostRows hidden(random, 9, 64, DType::f32);
  store_float(DType::f32, hidden.bytes.data(), 64 * 4 + 1, NAN);
  const DeviceRows in(hidden), out(hidden);
  const Pinned pinned;
  std::memset(static_cast<void*>(pinned.report), 0xFF, sizeof *pinned.report);
  must(model.forward(context, 0, in.view(), out.mutable_view(), {.report = pinned.report}));
  MOE_CHECK(cudaStreamSynchronize(stream.stream));
  CHECK(pinned.report->rows == 9);
  CHECK(pinned.report->epoch == model.store().stats().epoch);
  CHECK(pinned.report->nonfinite_rows == 1);
  CHECK(pinned.report->short_rows == 1);
  CHECK(pinned.report->error == StatusCode::ok);

  std::vector<int32_t> ids(18, 0);
  ids[5] = 8;  // no such candidate: only the GPU can see it
  const Buffer<int32_t> device_ids(ids);
  const Buffer<float> weights(std::vector<float>(18, 0.5f));
  const Routing routing{9, 2, device_ids.data(), weights.data()};
  must(model.forward(context, 0, in.view(), out.mutable_view(),
                     {.routing_in = &routing, .report = pinned.report}));
  MOE_CHECK(cudaStreamSynchronize(stream.stream));
  CHECK(pinned.report->error == StatusCode::invalid_argument);

  ForwardReport pageable;
  const Status refused =
      model.forward(context, 0, in.view(), out.mutable_view(), {.report = &pageable});
  CHECK(refused.code() == StatusCode::invalid_argument);
  CHECK(refused.message().find("pinned") != std::string_view::npos);
}

TEST_CASE("a forward leaves the caller's CUDA state alone and allocates once", "[cuda][memory]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  RandomModel source({plain_layer()}, random, DType::bf16);
  Model model = must(Model::create(source.source(), {.device = kGpu}));
  const size_t bytes = must(Context::workspace_bytes(model, 100));
  CHECK(bytes > 0);
  Context context =
      must(Context::create(model, {.stream = cuda_stream(stream.stream), .max_tokens = 100}));
  const HostRows hidden(random, 100, 64, DType::bf16);
  const DeviceRows in(hidden), out(hidden);
  MOE_CHECK(cudaDeviceSynchronize());
  size_t free_before = 0, free_after = 0;
  must(model.forward(context, 0, in.view(), out.mutable_view()));
  // Others may take memory of the card meanwhile: one quiet round of ten is enough.
  for (int round = 0; round < 10 && (round == 0 || free_before != free_after); ++round) {
    free_before = free_on_device();
    for (int i = 0; i < 10; ++i) must(model.forward(context, 0, in.view(), out.mutable_view()));
    free_after = free_on_device();
  }
  CHECK(cudaPeekAtLastError() == cudaSuccess);
  int device = -1;
  MOE_CHECK(cudaGetDevice(&device));
  CHECK(device == 0);
  CHECK(free_before == free_after);
  CHECK(cudaStreamSynchronize(stream.stream) == cudaSuccess);

  const Status overload = model.forward(0, in.view(), out.mutable_view());
  CHECK(overload.code() == StatusCode::failed_precondition);
  const Status elsewhere = model.forward(context, 0, hidden.view(), out.mutable_view());
  CHECK(elsewhere.code() == StatusCode::invalid_argument);
}

TEST_CASE("a host's own device memory serves everything and comes back", "[cuda]") {
  if (!have_gpu()) return skip(kNoGpu);
  class Counting final : public Allocator {
   public:
    void* allocate(size_t bytes, size_t) noexcept override {
      void* memory = nullptr;
      if (out + bytes > most || cudaMalloc(&memory, bytes) != cudaSuccess) return nullptr;
      out += bytes;
      return memory;
    }
    void deallocate(void* memory, size_t bytes, size_t) noexcept override {
      out -= bytes;
      cudaFree(memory);
    }
    size_t out = 0, most = size_t{1} << 30;
  } memory;
  Random random(test::seed());
  const OwnStream stream;
  RandomModel source({plain_layer()}, random, DType::bf16);
  const ModelOptions options{.device = kGpu, .host = {.device_memory = &memory}};
  const HostRows hidden(random, 20, 64, DType::bf16);
  const DeviceRows in(hidden), out(hidden);
  {
    Model model = must(Model::create(source.source(), options));
    const size_t loaded = memory.out;
    CHECK(loaded >= model.store().stats().pool_bytes);
    Context context = must(Context::create(model, {.stream = cuda_stream(stream.stream)}));
    must(model.forward(context, 0, in.view(), out.mutable_view()));
    CHECK(memory.out - loaded == must(Context::workspace_bytes(model, 20)));

    memory.most = memory.out + 1000;
    const HostRows more(random, 2000, 64, DType::bf16);
    const DeviceRows more_in(more), more_out(more);
    const Status full = model.forward(context, 0, more_in.view(), more_out.mutable_view());
    CHECK(full.code() == StatusCode::resource_exhausted);
    CHECK(full.message().find("asked") != std::string_view::npos);
    CHECK(full.message().find("free") != std::string_view::npos);
    must(model.forward(context, 0, in.view(), out.mutable_view()));
  }
  CHECK(memory.out == 0);
  memory.most = 1000;
  const auto refused = Model::create(source.source(), options);
  CHECK(refused.status().code() == StatusCode::resource_exhausted);
  CHECK(memory.out == 0);
}

TEST_CASE("a layer that the GPU's router does not serve is refused with its number", "[cuda]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  struct Case {
    int32_t experts, top_k;
    const char* number;
  };
  for (const Case& c : {Case{4097, 2, "4097"}, Case{64, 33, "33"}}) {
    LayerSpec spec = plain_layer(0, c.experts, c.top_k);
    spec.expert.hidden = spec.expert.intermediate = 8;
    RandomModel source({spec}, random, DType::bf16);
    const auto refused = Model::create(source.source(), {.device = kGpu});
    CHECK(refused.status().code() == StatusCode::unimplemented);
    CHECK(refused.status().message().find(c.number) != std::string_view::npos);
  }
  LayerSpec most = plain_layer(0, 4096, 32);
  most.expert.hidden = most.expert.intermediate = 8;
  RandomModel source({most}, random, DType::bf16);
  Pair models(source.source());
  const OwnStream stream;
  for (const int64_t tokens : {1, 3, 70}) {
    const HostRows hidden(random, tokens, 8, DType::bf16);
    CHECK(run_both(models, 0, hidden, DType::f32, {}, random, stream.stream) < 1e-2);
  }
}

TEST_CASE("a hundred forwards on the GPU have the same bits", "[cuda][mission-139]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  LayerSpec spec = plain_layer(0, 16, 4);
  spec.shared.emplace();
  spec.shared->expert = spec.expert;
  RandomModel source({spec}, random, DType::bf16);
  Model model = must(Model::create(source.source(), {.device = kGpu}));
  Context context = must(Context::create(model, {.stream = cuda_stream(stream.stream)}));
  for (const int64_t tokens : {1, 50, 400}) {
    const HostRows hidden(random, tokens, 64, DType::f32);
    const DeviceRows in(hidden), out(hidden);
    std::vector<std::byte> first;
    int different = 0;
    for (int i = 0; i < 100; ++i) {
      must(model.forward(context, 0, in.view(), out.mutable_view()));
      MOE_CHECK(cudaStreamSynchronize(stream.stream));
      if (i == 0) first = out.host().bytes;
      different += out.host().bytes != first;
    }
    CHECK(different == 0);
  }
}

TEST_CASE("several streams and two models at once on the GPU", "[cuda]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  RandomModel source({plain_layer()}, random, DType::bf16),
      other({plain_layer()}, random, DType::bf16);
  Model models[2] = {must(Model::create(source.source(), {.device = kGpu})),
                     must(Model::create(other.source(), {.device = kGpu}))};
  const HostRows hidden(random, 70, 64, DType::bf16);
  const DeviceRows in(hidden);
  constexpr int kThreads = 4;
  std::vector<std::unique_ptr<DeviceRows>> outs;
  for (int i = 0; i < 2 * kThreads; ++i) outs.push_back(std::make_unique<DeviceRows>(hidden));
  std::vector<std::thread> threads;
  std::atomic<int> failed{0};
  for (int i = 0; i < 2 * kThreads; ++i)
    threads.emplace_back([&, i] {
      const OwnStream stream;
      auto context = Context::create(models[i % 2], {.stream = cuda_stream(stream.stream)});
      for (int n = 0; n < 50 && context.ok(); ++n)
        failed += !models[i % 2].forward(*context, 0, in.view(), outs[i]->mutable_view()).ok();
      failed += !context.ok() || cudaStreamSynchronize(stream.stream) != cudaSuccess;
    });
  for (std::thread& thread : threads) thread.join();
  REQUIRE(failed == 0);
  for (int i = 2; i < 2 * kThreads; ++i) CHECK(outs[i]->host().bytes == outs[i % 2]->host().bytes);
  CHECK(outs[0]->host().bytes != outs[1]->host().bytes);
}

TEST_CASE("a paged model on the GPU gives the resident one's bits", "[cuda][moving]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  LayerSpec spec = plain_layer(0, 16, 4);
  spec.router.weight_on_input = random.chance(0.5);
  RandomModel source({spec}, random, DType::bf16);
  Model all = must(Model::create(source.source(), {.device = kGpu}));
  const size_t slot = all.store().stats().slot_bytes;
  Model paged = must(Model::create(source.source(), {.device = kGpu, .expert_memory = 7 * slot}));
  CHECK(paged.store().stats().capacity == 5);
  Context a = must(Context::create(all, {.stream = cuda_stream(stream.stream)}));
  Context b = must(Context::create(paged, {.stream = cuda_stream(stream.stream)}));
  for (const int64_t tokens : {1, 3, 80, 500}) {
    CAPTURE(tokens);
    const HostRows hidden(random, tokens, 64, DType::bf16);
    const DeviceRows in(hidden), resident(hidden), waves(hidden);
    must(all.forward(a, 0, in.view(), resident.mutable_view()));
    must(paged.forward(b, 0, in.view(), waves.mutable_view()));
    MOE_CHECK(cudaStreamSynchronize(stream.stream));
    CHECK(distance(waves.host(), resident.host(), tokens) < 1e-2);
  }
  CHECK(paged.store().stats().paging.misses > 0);

  cudaGraph_t graph;
  MOE_CHECK(cudaStreamBeginCapture(stream.stream, cudaStreamCaptureModeThreadLocal));
  const HostRows one(random, 1, 64, DType::bf16);
  const Status refused = [&] {
    const TensorView fake(a.impl(), DType::bf16, {1, 64}, kGpu);
    return paged.forward(b, 0, fake, {b.impl(), DType::bf16, {1, 64}, kGpu});
  }();
  MOE_CHECK(cudaStreamEndCapture(stream.stream, &graph));
  cudaGraphDestroy(graph);
  CHECK(refused.code() == StatusCode::failed_precondition);
  CHECK(refused.message().find("cannot be captured") != std::string_view::npos);
}

TEST_CASE("a forward is few launches, and none waits", "[cuda][small][mission-139]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  for (int round = 0; round < 12; ++round) {
    const DType stored = round % 2 == 0 ? DType::bf16 : DType::f32;
    const LayerSpec spec = test::random_layer(random, 3, stored, 16, 4);
    RandomModel source({spec}, random, stored);
    Model model = must(Model::create(source.source(), {.device = kGpu}));
    for (const int64_t tokens : {1, 2, 7, 16, 17, 64, 600}) {
      const HostRows hidden(random, tokens, spec.hidden(), any_type(random));
      const DeviceRows in(hidden), out(hidden);
      Context context = must(
          Context::create(model, {.stream = cuda_stream(stream.stream), .max_tokens = tokens}));
      CAPTURE(round, tokens, to_string(hidden.dtype));
      const bool few = tokens <= 16;
      // Few rows: what comes before the experts, and all else in one kernel or two. Many: before
      // the experts come the router's product, the choice and the permutation, after them the sum;
      // the shared expert has two and its gate's product of its own.
      size_t want = few ? (tokens == 1 ? 3 : 2) : 3 + 3;
      if (!few && spec.shared) want += 2 + (spec.shared->sigmoid_gate ? 1 : 0);
      CHECK(launches(model, context, stream, 3, in, out) == want);
    }
  }
}

// Two versions of experts 0 to 3 in turn, each filled into the slots of 4 to 7, which nothing is
// routed to. A replay must see all of one version.
TEST_CASE("replays of a graph see whole tables while tables change", "[cuda][mission-36]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  const LayerSpec spec = plain_layer(0, 8, 4);
  RandomModel one({spec}, random, DType::bf16), two({spec}, random, DType::bf16);
  Model model = must(Model::create(one.source(), {.device = kGpu}));
  Model answers = must(Model::create(two.source(), {.device = kGpu}));
  ExpertStore::Impl& store = *model.store().impl();
  StoreLayer& layer = *store.layers[0];

  // Fixed routing: experts 0 to 3 for every row, so that the router's weights play no part.
  constexpr int64_t kRows = 40;
  std::vector<int32_t> ids;
  for (int64_t p = 0; p < kRows * 4; ++p) ids.push_back(static_cast<int32_t>(p % 4));
  const Buffer<int32_t> device_ids(ids);
  const Buffer<float> weights(std::vector<float>(ids.size(), 0.25f));
  const Routing routing{kRows, 4, device_ids.data(), weights.data()};
  const HostRows hidden(random, kRows, 64, DType::bf16);
  const DeviceRows in(hidden), out(hidden), want_one(hidden), want_two(hidden);
  Context context =
      must(Context::create(model, {.stream = cuda_stream(stream.stream), .max_tokens = kRows}));
  Context other = must(Context::create(answers, {.stream = cuda_stream(stream.stream)}));
  must(model.forward(context, 0, in.view(), want_one.mutable_view(), {.routing_in = &routing}));
  must(answers.forward(other, 0, in.view(), want_two.mutable_view(), {.routing_in = &routing}));

  cudaGraph_t graph;
  cudaGraphExec_t exec;
  const Pinned pinned;
  MOE_CHECK(cudaStreamBeginCapture(stream.stream, cudaStreamCaptureModeGlobal));
  must(model.forward(context, 0, in.view(), out.mutable_view(),
                     {.routing_in = &routing, .report = pinned.report}));
  MOE_CHECK(cudaStreamEndCapture(stream.stream, &graph));
  MOE_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  MOE_CHECK(cudaGraphLaunch(exec, stream.stream));
  MOE_CHECK(cudaStreamSynchronize(stream.stream));
  REQUIRE(out.host().bytes == want_one.host().bytes);

  // The reloader: experts 4 to 7 lend their slots to the other version of 0 to 3, and back.
  std::atomic<bool> stop{false};
  std::atomic<int> published{0};
  Status trouble;
  std::thread reloader([&] {
    bool second = false;
    while (!stop) {
      second = !second;
      const WeightSource& source = second ? two.source() : one.source();
      // Slots of 4 ... 7 are free in both tables; what served 0 ... 3 before takes their place.
      for (int32_t e = 0; e < 4 && trouble.ok(); ++e) {
        const int64_t spare = layer.experts[static_cast<size_t>(e) + 4].first;
        trouble = store.device
                      ->fill(store.classes[layer.routed.slot_class].pool->address(spare),
                             layer.routed.layout.bytes,
                             [&](std::byte* to) {
                               return layer.routed.gemm->pack(spec.expert, source, 0, e, to);
                             })
                      .status();
      }
      if (!trouble.ok()) return;
      {
        std::lock_guard lock(store.mutex);
        for (size_t e = 0; e < 4; ++e)
          std::swap(layer.experts[e].first, layer.experts[e + 4].first);
        trouble = store.publish(layer);
      }
      if (trouble.ok()) trouble = store.wait_for_grace(INT64_MAX / 2);
      if (!trouble.ok()) return;
      ++published;
    }
  });
  int ones = 0, twos = 0, neither = 0;
  const auto first = want_one.host().bytes, second = want_two.host().bytes;
  uint64_t last_epoch = 0;
  bool epochs_ascend = true;
  for (int i = 0; i < 3000 || (i < 100000 && (ones == 0 || twos == 0)); ++i) {
    MOE_CHECK(cudaGraphLaunch(exec, stream.stream));
    MOE_CHECK(cudaStreamSynchronize(stream.stream));
    const auto bytes = out.bytes.host();
    epochs_ascend &= pinned.report->epoch >= last_epoch;
    last_epoch = pinned.report->epoch;
    if (bytes == first)
      ++ones;
    else if (bytes == second)
      ++twos;
    else
      ++neither;
  }
  stop = true;
  reloader.join();
  must(trouble);
  std::printf("%d replays of the first version, %d of the second, %d tables published\n", ones,
              twos, published.load());
  CHECK(neither == 0);
  CHECK(ones > 0);
  CHECK(twos > 0);
  CHECK(epochs_ascend);
  CHECK(published > 2);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}
