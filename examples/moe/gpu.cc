#include "gpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "gpu_limits.h"
#include "moe/cuda.h"

namespace moe::cli {
namespace {

Status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return Status(StatusCode::internal,
                fmt::format("CUDA failed to {}: {}", what, cudaGetErrorString(error)));
}

// Memory of one kind that frees itself.
template <cudaError_t (*kFree)(void*)>
struct Memory {
  ~Memory() {
    if (data) (void)kFree(data);
  }
  void* data = nullptr;
};
using OnDevice = Memory<cudaFree>;
using Pinned = Memory<cudaFreeHost>;

Status allocate(OnDevice& memory, size_t bytes) {
  return check(cudaMalloc(&memory.data, std::max<size_t>(bytes, 1)), "allocate device memory");
}
Status upload(OnDevice& memory, const void* from, size_t bytes) {
  if (Status status = allocate(memory, bytes); !status.ok()) return status;
  return check(cudaMemcpy(memory.data, from, bytes, cudaMemcpyHostToDevice), "copy to the GPU");
}
Status download(void* to, const OnDevice& memory, size_t bytes) {
  return check(cudaMemcpy(to, memory.data, bytes, cudaMemcpyDeviceToHost), "copy from the GPU");
}

struct OwnStream {
  ~OwnStream() {
    if (stream) (void)cudaStreamDestroy(stream);
  }
  Status make() {
    return check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
  }
  cudaStream_t stream = nullptr;
};

// One batch in device memory, with room for what comes out.
struct DeviceBatch {
  OnDevice hidden, token_ids, out, ids, weights;

  Status make(const Batch& batch, int32_t top_k) {
    const size_t pairs = static_cast<size_t>(batch.rows * top_k);
    for (Status status : {upload(hidden, batch.hidden.data(), batch.hidden.size()),
                          upload(token_ids, batch.token_ids.data(), batch.token_ids.size() * 8),
                          allocate(out, batch.hidden.size()), allocate(ids, pairs * 4),
                          allocate(weights, pairs * 4)})
      if (!status.ok()) return status;
    return {};
  }
  Status forward(Model& model, Context& context, const LayerSpec& layer, const Batch& batch,
                 ForwardOptions options) const {
    const Dims shape = {batch.rows, batch.hidden_size};
    const Device device = model.store().device();
    if (!batch.token_ids.empty()) options.token_ids = static_cast<const int64_t*>(token_ids.data);
    return model.forward(context, layer.layer, {hidden.data, batch.dtype, shape, device},
                         {out.data, batch.dtype, shape, device}, options);
  }
};

}  // namespace

Status forward_on_gpu(Model& model, const LayerSpec& layer, Batch& batch) {
  if (Status s = check(cudaSetDevice(model.store().device().index), "choose the GPU"); !s.ok())
    return s;
  OwnStream stream;
  Pinned report;
  DeviceBatch device;
  if (Status s = stream.make(); !s.ok()) return s;
  if (Status s = check(cudaHostAlloc(&report.data, sizeof(ForwardReport), 0), "pin memory");
      !s.ok())
    return s;
  if (Status s = device.make(batch, layer.router.top_k); !s.ok()) return s;
  Result<Context> context =
      Context::create(model, {.stream = cuda_stream(stream.stream, model.store().device().index)});
  if (!context.ok()) return context.status();
  Routing routing{batch.rows, layer.router.top_k, static_cast<int32_t*>(device.ids.data),
                  static_cast<float*>(device.weights.data)};
  auto* news = new (report.data) ForwardReport;
  if (Status s =
          device.forward(model, *context, layer, batch, {.routing_out = &routing, .report = news});
      !s.ok())
    return s;
  if (Status s = check(cudaStreamSynchronize(stream.stream), "run the layer"); !s.ok()) return s;
  batch.report = *news;
  if (news->error != StatusCode::ok)
    return Status(news->error, "the GPU found the forward's input wrong");
  batch.top_k = layer.router.top_k;
  batch.out.resize(batch.hidden.size());
  batch.ids.resize(static_cast<size_t>(batch.rows * batch.top_k));
  batch.weights.resize(batch.ids.size());
  for (Status s : {download(batch.out.data(), device.out, batch.out.size()),
                   download(batch.ids.data(), device.ids, batch.ids.size() * 4),
                   download(batch.weights.data(), device.weights, batch.weights.size() * 4)})
    if (!s.ok()) return s;
  batch.ids_64.assign(batch.ids.begin(), batch.ids.end());
  return {};
}

Result<GpuLimits> gpu_limits(int32_t device) {
  if (Status s = check(cudaSetDevice(device), "choose the GPU"); !s.ok()) return s;
  return GpuLimits{moe::bench::read_bandwidth(), moe::bench::matrix_rate(false)};
}

// ---- bench

namespace {

double network_weights(const ExpertSpec& spec) {
  return (spec.gated ? 3.0 : 2.0) * static_cast<double>(spec.hidden) *
         static_cast<double>(spec.intermediate);
}

// Work of a forward whose routing is `ids`: activated experts count once.
void add_work(const LayerSpec& layer, const std::vector<int32_t>& ids, int64_t rows, bool shared,
              double part, GpuPoint& point) {
  std::vector<bool> active(static_cast<size_t>(layer.router.num_experts));
  double pairs = 0;
  for (const int32_t id : ids) {
    if (id < 0 || id >= layer.router.num_experts) continue;
    active[static_cast<size_t>(id)] = true;
    ++pairs;
  }
  const auto distinct = static_cast<double>(std::count(active.begin(), active.end(), true));
  const double expert = network_weights(layer.expert);
  const double router = static_cast<double>(layer.router.candidates() * layer.hidden());
  const double fixed =
      router + (shared && layer.shared ? network_weights(layer.shared->expert) : 0);
  const auto count = static_cast<double>(rows), width = static_cast<double>(layer.hidden());
  point.flops += part * 2 * (pairs * expert + count * fixed);
  point.bytes += part * 2 * (distinct * expert + fixed + 2 * count * width);
}

// Layers per graph: different rows and routings, so that L2 does not hold what they read.
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

Status replay(cudaGraphExec_t graph, cudaStream_t stream, int layers, GpuPoint& point) {
  cudaEvent_t begin = nullptr, end = nullptr;
  for (cudaEvent_t* event : {&begin, &end})
    if (Status s = check(cudaEventCreate(event), "make an event"); !s.ok()) return s;
  std::vector<double> us;
  double spent = 0;
  for (int i = 0; i < 43 && (i < 10 || spent < 0.25); ++i) {
    float ms = 0;
    cudaError_t error = cudaEventRecord(begin, stream);
    if (error == cudaSuccess) error = cudaGraphLaunch(graph, stream);
    if (error == cudaSuccess) error = cudaEventRecord(end, stream);
    if (error == cudaSuccess) error = cudaEventSynchronize(end);
    if (error == cudaSuccess) error = cudaEventElapsedTime(&ms, begin, end);
    if (Status s = check(error, "replay a graph"); !s.ok()) return s;
    spent += ms * 1e-3;
    if (i >= 3) us.push_back(ms * 1e3 / layers);
  }
  (void)cudaEventDestroy(begin);
  (void)cudaEventDestroy(end);
  std::sort(us.begin(), us.end());
  point.us = us[us.size() / 2];
  point.us_min = us.front();
  point.us_max = us.back();
  return {};
}

}  // namespace

Result<GpuPoint> bench_on_gpu(const WeightSource& source, Model& model, const GpuBench& bench,
                              int64_t tokens) {
  if (Status s = check(cudaSetDevice(bench.device), "choose the GPU"); !s.ok()) return s;
  OwnStream stream;
  if (Status s = stream.make(); !s.ok()) return s;
  Result<Context> context = Context::create(
      model, {.stream = cuda_stream(stream.stream, bench.device), .max_tokens = tokens});
  if (!context.ok()) return context.status();
  const int layers = layers_of(tokens);
  std::vector<Batch> batches;
  std::vector<std::unique_ptr<DeviceBatch>> on_gpu;
  GpuPoint point{.tokens = tokens};
  const auto layer_of = [&](int i) -> const LayerSpec& {
    return model.layers()[static_cast<size_t>(i) % model.layers().size()];
  };
  for (int i = 0; i < layers; ++i) {
    const LayerSpec& layer = layer_of(i);
    batches.push_back(random_batch(source, layer, tokens, static_cast<uint64_t>(i)));
    to_bf16(batches.back());
    on_gpu.push_back(std::make_unique<DeviceBatch>());
    DeviceBatch& batch = *on_gpu.back();
    if (Status s = batch.make(batches.back(), layer.router.top_k); !s.ok()) return s;
    Routing routing{tokens, layer.router.top_k, static_cast<int32_t*>(batch.ids.data),
                    static_cast<float*>(batch.weights.data)};
    if (Status s = batch.forward(model, *context, layer, batches.back(),
                                 {.routing_out = &routing, .skip_shared = !bench.shared});
        !s.ok())
      return s;
    if (Status s = check(cudaStreamSynchronize(stream.stream), "run the layer"); !s.ok()) return s;
    std::vector<int32_t> ids(static_cast<size_t>(tokens * layer.router.top_k));
    if (Status s = download(ids.data(), batch.ids, ids.size() * 4); !s.ok()) return s;
    add_work(layer, ids, tokens, bench.shared, 1.0 / layers, point);
  }

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  if (Status s = check(cudaStreamBeginCapture(stream.stream, cudaStreamCaptureModeGlobal),
                       "begin a capture");
      !s.ok())
    return s;
  Status forwarded;
  for (int i = 0; i < layers && forwarded.ok(); ++i)
    forwarded = on_gpu[static_cast<size_t>(i)]->forward(model, *context, layer_of(i),
                                                        batches[static_cast<size_t>(i)],
                                                        {.skip_shared = !bench.shared});
  const cudaError_t captured = cudaStreamEndCapture(stream.stream, &graph);
  if (!forwarded.ok()) return forwarded;
  if (Status s = check(captured, "capture the layers"); !s.ok()) return s;
  if (Status s = check(cudaGraphInstantiate(&exec, graph, 0), "make a graph"); !s.ok()) return s;
  const Status timed = replay(exec, stream.stream, layers, point);
  (void)cudaGraphExecDestroy(exec);
  (void)cudaGraphDestroy(graph);
  if (!timed.ok()) return timed;
  return point;
}

}  // namespace moe::cli
