// Several GPUs in one process, a model on each: tools/gpu-tests runs these where there are two.
#include <atomic>
#include <memory>
#include <optional>
#include <thread>

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

constexpr const char* kNeedsTwo = "there is one CUDA device here; this needs two";

int gpu_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

int current() {
  int device = -1;
  MOE_CHECK(cudaGetDevice(&device));
  return device;
}

// The caller's device while it lives.
struct OnDevice {
  explicit OnDevice(int32_t device) { MOE_CHECK(cudaSetDevice(device)); }
  ~OnDevice() { cudaSetDevice(0); }
};

// Rows on the current GPU and a stream of it.
struct Lane {
  explicit Lane(const HostRows& rows) : device(current()), in(rows), out(rows) {}
  Stream on() const { return cuda_stream(stream.stream, device); }

  int32_t device;
  OwnStream stream;
  DeviceRows in, out;
};

std::unique_ptr<Lane> lane_on(int32_t gpu, const HostRows& rows) {
  const OnDevice caller(gpu);
  return std::make_unique<Lane>(rows);
}

LayerSpec layer_with_shared() {
  LayerSpec spec = plain_layer(0, 16, 4);
  spec.shared.emplace();
  spec.shared->expert = spec.expert;
  return spec;
}

}  // namespace

TEST_CASE("several GPUs in one process, a model each", "[cuda][gpus]") {
  if (!have_gpu()) return skip(kNoGpu);
  if (gpu_count() < 2) return skip(kNeedsTwo);
  const int32_t count = gpu_count();
  Random random(test::seed());
  const RandomModel source({layer_with_shared()}, random, DType::bf16);
  const HostRows hidden(random, 70, 64, DType::bf16);
  std::vector<Model> models;
  {
    const OnDevice caller(count - 1);
    for (int32_t i = 0; i < count; ++i) {
      models.push_back(must(Model::create(source.source(), {.device = Device::cuda(i)})));
      CHECK(current() == count - 1);
    }
  }

  // Several streams of every GPU at once, from threads whose own device is another one.
  constexpr int kLanes = 4;
  std::vector<std::unique_ptr<Lane>> lanes;
  for (int i = 0; i < count * kLanes; ++i) lanes.push_back(lane_on(i % count, hidden));
  std::vector<std::thread> threads;
  std::atomic<int> failed{0}, moved{0};
  for (auto& lane : lanes)
    threads.emplace_back([&, lane = lane.get()] {
      const int32_t own = (lane->device + 1) % count;
      const OnDevice caller(own);
      Model& model = models[static_cast<size_t>(lane->device)];
      auto context = Context::create(model, {.stream = lane->on(), .max_tokens = 70});
      moved += current() != own;
      for (int n = 0; n < 50 && context.ok(); ++n) {
        failed += !model.forward(*context, 0, lane->in.view(), lane->out.mutable_view()).ok();
        moved += current() != own;
      }
      failed += !context.ok() || cudaStreamSynchronize(lane->stream.stream) != cudaSuccess;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(failed == 0);
  CHECK(moved == 0);
  CHECK(cudaPeekAtLastError() == cudaSuccess);

  Model cpu = must(Model::create(source.source()));
  HostRows want = hidden;
  want.poison();
  must(cpu.forward(0, hidden.view(), want.mutable_view()));
  const HostRows first = lanes[0]->out.host();
  CHECK(distance(first, want, 70) < 1e-2);
  for (const auto& lane : lanes) CHECK(lane->out.host().bytes == first.bytes);
}

TEST_CASE("what lies on another GPU is refused", "[cuda][gpus]") {
  if (!have_gpu()) return skip(kNoGpu);
  if (gpu_count() < 2) return skip(kNeedsTwo);
  Random random(test::seed());
  const RandomModel source({plain_layer()}, random, DType::bf16);
  const HostRows hidden(random, 20, 64, DType::bf16);
  const auto zero = lane_on(0, hidden), one = lane_on(1, hidden);
  Model model = must(Model::create(source.source(), {.device = Device::cuda(1)}));
  const auto elsewhere = Context::create(model, {.stream = zero->on()});
  CHECK(elsewhere.status().code() == StatusCode::invalid_argument);
  Context context = must(Context::create(model, {.stream = one->on()}));
  for (const Status& refused :
       {model.forward(context, 0, zero->in.view(), one->out.mutable_view()),
        model.forward(context, 0, one->in.view(), zero->out.mutable_view())}) {
    INFO(refused.message());
    CHECK(refused.code() == StatusCode::invalid_argument);
    CHECK(refused.message().find("cuda:0") != std::string_view::npos);
  }
  must(model.forward(context, 0, one->in.view(), one->out.mutable_view()));
  MOE_CHECK(cudaStreamSynchronize(one->stream.stream));
}

// A graph of each GPU's model; experts of the last one are replaced meanwhile.
TEST_CASE("a reload on one GPU leaves graphs of the others alone", "[cuda][gpus]") {
  if (!have_gpu()) return skip(kNoGpu);
  if (gpu_count() < 2) return skip(kNeedsTwo);
  const int32_t count = gpu_count(), last = count - 1;
  Random random(test::seed());
  const RandomModel one({plain_layer()}, random, DType::bf16),
      two({plain_layer()}, random, DType::bf16);
  const HostRows hidden(random, 33, 64, DType::bf16);
  std::vector<std::unique_ptr<Lane>> lanes;
  std::vector<Model> models;
  std::vector<Context> contexts;
  std::vector<cudaGraphExec_t> graphs(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) {
    lanes.push_back(lane_on(i, hidden));
    models.push_back(must(Model::create(one.source(), {.device = Device::cuda(i)})));
  }
  for (int32_t i = 0; i < count; ++i) {
    const auto n = static_cast<size_t>(i);
    contexts.push_back(
        must(Context::create(models[n], {.stream = lanes[n]->on(), .max_tokens = 33})));
    const OnDevice caller(i);
    cudaGraph_t graph;
    MOE_CHECK(cudaStreamBeginCapture(lanes[n]->stream.stream, cudaStreamCaptureModeThreadLocal));
    must(models[n].forward(contexts[n], 0, lanes[n]->in.view(), lanes[n]->out.mutable_view()));
    MOE_CHECK(cudaStreamEndCapture(lanes[n]->stream.stream, &graph));
    MOE_CHECK(cudaGraphInstantiate(&graphs[n], graph, 0));
    MOE_CHECK(cudaGraphDestroy(graph));
  }
  const auto replay = [&](int32_t i) {
    const OnDevice caller(i);
    const auto n = static_cast<size_t>(i);
    MOE_CHECK(cudaGraphLaunch(graphs[n], lanes[n]->stream.stream));
    MOE_CHECK(cudaStreamSynchronize(lanes[n]->stream.stream));
    return lanes[n]->out.host().bytes;
  };
  const std::vector<std::byte> before = replay(0);
  Status reloaded;
  std::atomic<bool> done{false};
  std::thread reloader([&] {
    ExpertStore& store = models[static_cast<size_t>(last)].store();
    for (int n = 0; n < 7 && reloaded.ok(); ++n)
      reloaded =
          store.reload(n % 2 == 0 ? two.source() : one.source(), {.step = ReloadStep::expert})
              .status();
    done = true;
  });
  int replays = 0, different = 0;
  for (; !done || replays < 50; ++replays) {
    (void)replay(last);
    different += replay(0) != before;
  }
  reloader.join();
  must(reloaded);
  CHECK(different == 0);
  CHECK(replay(last) != before);  // the same graph, the new experts
  for (int32_t i = 0; i < count; ++i) {
    const OnDevice caller(i);
    MOE_CHECK(cudaGraphExecDestroy(graphs[static_cast<size_t>(i)]));
  }
  CHECK(cudaPeekAtLastError() == cudaSuccess);
}
