#include "gpu.h"

#include "gpu_memory.h"

namespace moe::cli {

Status forward_on_gpu(Model& model, const LayerSpec& layer, Batch& batch) {
  if (Status s = check_cuda(cudaSetDevice(model.store().device().index), "choose the GPU"); !s.ok())
    return s;
  OwnStream stream;
  Pinned report;
  DeviceBatch device;
  if (Status s = stream.make(); !s.ok()) return s;
  if (Status s = check_cuda(cudaHostAlloc(&report.data, sizeof(ForwardReport), 0), "pin memory");
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
  if (Status s = check_cuda(cudaStreamSynchronize(stream.stream), "run the layer"); !s.ok())
    return s;
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

}  // namespace moe::cli
