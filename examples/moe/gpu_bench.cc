// moe bench on a GPU: graphs of forwards, replayed.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "gpu.h"
#include "gpu_limits.h"
#include "gpu_memory.h"
#include "work.h"

namespace moe::cli {
namespace {

constexpr int kWarmUps = 3;
constexpr int kLeastReplays = 20, kMostReplays = 200;
constexpr double kSeconds = 0.5;  // beyond kLeastReplays

// Layers per graph: other rows and routings each, so that L2 does not hold what they read.
int layers_of(int64_t tokens) {
  return tokens <= 64 ? 8 : tokens <= 256 ? 4 : tokens <= 4096 ? 2 : 1;
}

void to_bf16(Batch& batch) {
  const auto* values = reinterpret_cast<const uint32_t*>(batch.hidden.data());
  const size_t count = batch.hidden.size() / 4;
  std::vector<std::byte> rounded(count * 2);
  auto* to = reinterpret_cast<uint16_t*>(rounded.data());
  for (size_t i = 0; i < count; ++i)
    to[i] = static_cast<uint16_t>((values[i] + 0x7FFF + ((values[i] >> 16) & 1)) >> 16);
  batch.hidden = std::move(rounded);
  batch.dtype = DType::bf16;
}

// As slots of a GPU hold it: what is not fp8 is bf16.
LayerSpec as_packed(LayerSpec layer) {
  const auto packed = [](ExpertSpec& expert) {
    if (expert.format.kind != FormatKind::fp8_block) expert.format = {FormatKind::bf16};
  };
  packed(layer.expert);
  if (layer.shared) packed(layer.shared->expert);
  return layer;
}

Status replay(cudaGraphExec_t graph, cudaStream_t stream, int layers, GpuPoint& point) {
  OwnEvent begin, end;
  for (OwnEvent* event : {&begin, &end})
    if (Status s = event->make(); !s.ok()) return s;
  std::vector<double> us;
  double spent = 0;
  for (int i = -kWarmUps; i < kMostReplays && (i < kLeastReplays || spent < kSeconds); ++i) {
    float ms = 0;
    cudaError_t error = cudaEventRecord(begin.event, stream);
    if (error == cudaSuccess) error = cudaGraphLaunch(graph, stream);
    if (error == cudaSuccess) error = cudaEventRecord(end.event, stream);
    if (error == cudaSuccess) error = cudaEventSynchronize(end.event);
    if (error == cudaSuccess) error = cudaEventElapsedTime(&ms, begin.event, end.event);
    if (Status s = check_cuda(error, "replay a graph"); !s.ok()) return s;
    if (i < 0) continue;
    spent += ms * 1e-3;
    us.push_back(ms * 1e3 / layers);
  }
  std::sort(us.begin(), us.end());
  point.us = us[us.size() / 2];
  point.us_min = us.front();
  point.us_max = us.back();
  point.replays = static_cast<int64_t>(us.size());
  return {};
}

// The layers of one graph: random rows of each, on the GPU.
struct Rotation {
  Model& model;
  const GpuBench& bench;
  Context& context;
  cudaStream_t stream;
  std::vector<Batch> batches;
  std::vector<std::unique_ptr<DeviceBatch>> on_gpu;

  size_t size() const { return on_gpu.size(); }
  const LayerSpec& layer(size_t i) const { return model.layers()[i % model.layers().size()]; }

  Status add(const WeightSource& source, int64_t tokens) {
    const size_t i = size();
    batches.push_back(random_batch(source, layer(i), tokens, i));
    to_bf16(batches.back());
    on_gpu.push_back(std::make_unique<DeviceBatch>());
    return on_gpu.back()->make(batches.back(), layer(i).router.top_k);
  }
  Status forward(size_t i, ForwardOptions options) const {
    options.skip_shared = !bench.shared;
    return on_gpu[i]->forward(model, context, layer(i), batches[i], options);
  }
  // What a forward does, as its own routing says.
  Status count(size_t i, GpuPoint& point) const {
    const int32_t top_k = layer(i).router.top_k;
    const DeviceBatch& batch = *on_gpu[i];
    Routing routing{point.tokens, top_k, static_cast<int32_t*>(batch.ids.data),
                    static_cast<float*>(batch.weights.data)};
    if (Status s = forward(i, {.routing_out = &routing}); !s.ok()) return s;
    if (Status s = check_cuda(cudaStreamSynchronize(stream), "run the layer"); !s.ok()) return s;
    std::vector<int32_t> ids(static_cast<size_t>(point.tokens * top_k));
    if (Status s = download(ids.data(), batch.ids, ids.size() * 4); !s.ok()) return s;
    const Work work = work_of(as_packed(layer(i)), ids, point.tokens, bench.shared);
    const auto part = 1 / static_cast<double>(size());
    point.flops += part * work.flops;
    point.bytes += part * (work.weight_bytes + 2 * static_cast<double>(batches[i].hidden.size()));
    return {};
  }
};

}  // namespace

Result<GpuLimits> gpu_limits(int32_t device) {
  if (Status s = check_cuda(cudaSetDevice(device), "choose the GPU"); !s.ok()) return s;
  return GpuLimits{moe::bench::read_bandwidth(), moe::bench::matrix_rate(false),
                   moe::bench::matrix_rate(true)};
}

Result<GpuPoint> bench_on_gpu(const WeightSource& source, Model& model, const GpuBench& bench,
                              int64_t tokens) {
  if (Status s = check_cuda(cudaSetDevice(bench.device), "choose the GPU"); !s.ok()) return s;
  OwnStream stream;
  if (Status s = stream.make(); !s.ok()) return s;
  Result<Context> context = Context::create(
      model, {.stream = cuda_stream(stream.stream, bench.device), .max_tokens = tokens});
  if (!context.ok()) return context.status();
  GpuPoint point{.tokens = tokens};
  Rotation layers{model, bench, *context, stream.stream, {}, {}};
  for (int i = 0; i < layers_of(tokens); ++i)
    if (Status s = layers.add(source, tokens); !s.ok()) return s;
  for (size_t i = 0; i < layers.size(); ++i)
    if (Status s = layers.count(i, point); !s.ok()) return s;

  OwnGraph graph;
  if (Status s = graph.begin(stream.stream); !s.ok()) return s;
  Status forwarded;
  for (size_t i = 0; i < layers.size() && forwarded.ok(); ++i) forwarded = layers.forward(i, {});
  const Status captured = graph.end(stream.stream);
  if (!forwarded.ok()) return forwarded;
  if (!captured.ok()) return captured;
  if (Status s = replay(graph.exec, stream.stream, static_cast<int>(layers.size()), point); !s.ok())
    return s;
  return point;
}

}  // namespace moe::cli
