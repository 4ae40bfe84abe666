// A model on a GPU beside the same model on the CPU.
#pragma once

#include <vector>

#include "cuda/host.h"
#include "moe/moe.h"

namespace moe::cuda::test {

using HostRows = moe::test::Rows;

// One source, both models.
struct Pair {
  explicit Pair(const WeightSource& source, ModelOptions options = {})
      : cpu(must(Model::create(source))), gpu(must(Model::create(source, on_gpu(options)))) {}
  static ModelOptions on_gpu(ModelOptions options) {
    options.device = kGpu;
    return options;
  }
  Model cpu, gpu;
};

// The routing of both is the CPU's, so that ties in the logits do not matter.
inline double run_both(Pair& models, int32_t layer, const HostRows& hidden, DType out_type,
                       ForwardOptions options, moe::test::Random& random, cudaStream_t stream) {
  const LayerSpec spec = must(models.cpu.layer(layer));
  const int64_t tokens = hidden.shape[0];
  const int32_t top_k = options.top_k > 0 ? options.top_k : spec.router.top_k;
  HostRows want(random, tokens, spec.hidden(), out_type, random.between(0, 9));
  const DeviceRows in(hidden), out(want);
  std::vector<int32_t> ids(static_cast<size_t>(tokens * top_k));
  std::vector<float> weights(ids.size());
  Routing routing{tokens, top_k, ids.data(), weights.data()};
  ForwardOptions on_cpu = options;
  on_cpu.routing_out = &routing;
  must(models.cpu.forward(layer, hidden.view(), want.mutable_view(), on_cpu));

  const Buffer<int32_t> device_ids(ids);
  const Buffer<float> device_weights(weights);
  Routing device_routing{tokens, top_k, device_ids.data(), device_weights.data()};
  options.routing_in = &device_routing;
  Context context = must(Context::create(models.gpu, {.stream = cuda_stream(stream)}));
  must(models.gpu.forward(context, layer, in.view(), out.mutable_view(), options));
  MOE_CHECK(cudaStreamSynchronize(stream));
  return distance(out.host(), want, tokens);
}

}  // namespace moe::cuda::test
