// What a host of a model on a GPU has: streams, rows and a report there.
#pragma once

#include <algorithm>
#include <cmath>

#include "catch.h"
#include "cuda/buffer.h"
#include "model/random_model.h"
#include "moe/cuda.h"
#include "moe/model.h"

namespace moe::cuda::test {

constexpr const char* kNoGpu = "there is no CUDA device here";
constexpr Device kGpu = Device::cuda(0);

inline void must(const Status& status) {
  INFO(status.message());
  REQUIRE(status.ok());
}

template <class T>
T must(Result<T> result) {
  must(result.ok() ? Status() : result.status());
  return *std::move(result);
}

inline size_t free_on_device() {
  size_t free = 0, total = 0;
  MOE_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

struct OwnStream {
  OwnStream() { MOE_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); }
  ~OwnStream() { cudaStreamDestroy(stream); }
  cudaStream_t stream;
};

// Rows on the current GPU, with the host's strides.
struct DeviceRows {
  explicit DeviceRows(const moe::test::Rows& from)
      : like(from), bytes(std::vector<std::byte>(from.bytes)) {
    MOE_CHECK(cudaGetDevice(&device.index));
  }
  TensorView view() const {
    return {bytes.data(), like.dtype, like.shape, {like.stride, 1}, device};
  }
  MutableTensorView mutable_view() const {
    return {bytes.data(), like.dtype, like.shape, {like.stride, 1}, device};
  }
  moe::test::Rows host() const {
    moe::test::Rows rows = like;
    rows.bytes = bytes.host();
    return rows;
  }
  const moe::test::Rows& like;
  Device device = kGpu;
  Buffer<std::byte> bytes;
};

struct Error {
  double difference = 0, norm = 0;
  void add(double got, double wanted) {
    difference += (got - wanted) * (got - wanted);
    norm += wanted * wanted;
  }
  double relative() const { return std::sqrt(difference / std::max(norm, 1e-60)); }
};

inline double distance(const moe::test::Rows& got, const moe::test::Rows& wanted, int64_t rows) {
  Error error;
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t h = 0; h < got.shape[1]; ++h) error.add(got.at(t, h), wanted.at(t, h));
  return error.relative();
}

inline LayerSpec plain_layer(int32_t layer = 0, int32_t experts = 8, int32_t top_k = 2) {
  LayerSpec spec;
  spec.layer = layer;
  spec.router.num_experts = experts;
  spec.router.top_k = top_k;
  spec.expert = {.hidden = 64, .intermediate = 48};
  spec.expert.format = {FormatKind::bf16, 0};
  return spec;
}

// Plain cudaMalloc as a host's own memory: pools of a paged store do not move there. initcheck does
// not see what is copied to memory that was mapped below reserved addresses (tag [moving]).
class PlainMemory final : public Allocator {
 public:
  void* allocate(size_t bytes, size_t) noexcept override {
    void* memory = nullptr;
    return cudaMalloc(&memory, bytes) == cudaSuccess ? memory : nullptr;
  }
  void deallocate(void* memory, size_t, size_t) noexcept override { cudaFree(memory); }
};

// A report where a GPU can write it.
struct Pinned {
  Pinned() { MOE_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&report), sizeof *report, 0)); }
  ~Pinned() { cudaFreeHost(report); }
  ForwardReport* report;
};

// Kernels of one forward, as a graph has them.
inline size_t launches(Model& model, Context& context, const OwnStream& stream, int32_t layer,
                       const DeviceRows& in, const DeviceRows& out) {
  cudaGraph_t graph;
  size_t nodes = 0;
  MOE_CHECK(cudaStreamBeginCapture(stream.stream, cudaStreamCaptureModeGlobal));
  const Status status = model.forward(context, layer, in.view(), out.mutable_view());
  MOE_CHECK(cudaStreamEndCapture(stream.stream, &graph));
  must(status);
  MOE_CHECK(cudaGraphGetNodes(graph, nullptr, &nodes));
  std::vector<cudaGraphNode_t> all(nodes);
  MOE_CHECK(cudaGraphGetNodes(graph, all.data(), &nodes));
  for (cudaGraphNode_t node : all) {
    cudaGraphNodeType type;
    MOE_CHECK(cudaGraphNodeGetType(node, &type));
    CHECK(type == cudaGraphNodeTypeKernel);
  }
  cudaGraphDestroy(graph);
  return nodes;
}

}  // namespace moe::cuda::test
