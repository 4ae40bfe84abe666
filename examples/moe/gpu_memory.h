// Memory and streams of the GPU that free themselves, and a batch there.
#pragma once

#include <algorithm>

#include <fmt/format.h>

#include "batch.h"
#include "moe/cuda.h"
#include "moe/model.h"

namespace moe::cli {

inline Status check_cuda(cudaError_t error, const char* what) {
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

inline Status allocate(OnDevice& memory, size_t bytes) {
  return check_cuda(cudaMalloc(&memory.data, std::max<size_t>(bytes, 1)), "allocate device memory");
}
inline Status upload(OnDevice& memory, const void* from, size_t bytes) {
  if (Status status = allocate(memory, bytes); !status.ok()) return status;
  return check_cuda(cudaMemcpy(memory.data, from, bytes, cudaMemcpyHostToDevice),
                    "copy to the GPU");
}
inline Status download(void* to, const OnDevice& memory, size_t bytes) {
  return check_cuda(cudaMemcpy(to, memory.data, bytes, cudaMemcpyDeviceToHost),
                    "copy from the GPU");
}

struct OwnStream {
  ~OwnStream() {
    if (stream) (void)cudaStreamDestroy(stream);
  }
  Status make() {
    return check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
  }
  cudaStream_t stream = nullptr;
};

struct OwnEvent {
  ~OwnEvent() {
    if (event) (void)cudaEventDestroy(event);
  }
  Status make() { return check_cuda(cudaEventCreate(&event), "make an event"); }
  cudaEvent_t event = nullptr;
};

// A graph of what was enqueued on a stream between begin() and end().
struct OwnGraph {
  ~OwnGraph() {
    if (exec) (void)cudaGraphExecDestroy(exec);
    if (graph) (void)cudaGraphDestroy(graph);
  }
  Status begin(cudaStream_t stream) {
    return check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal),
                      "begin a capture");
  }
  Status end(cudaStream_t stream) {
    cudaError_t error = cudaStreamEndCapture(stream, &graph);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&exec, graph, 0);
    return check_cuda(error, "make a graph");
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
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

}  // namespace moe::cli
