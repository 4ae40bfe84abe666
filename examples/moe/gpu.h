// What the program does on a GPU: gpu.cc, or no_gpu.cc in a build without CUDA.
#pragma once

#include "batch.h"
#include "moe/model.h"

namespace moe::cli {

// forward() with `batch` copied to the model's GPU and back.
Status forward_on_gpu(Model& model, const LayerSpec& layer, Batch& batch);

// What `moe bench --device cuda:N` was asked for.
struct GpuBench {
  int32_t device = 0;
  bool shared = true;  // false: leave shared experts out
};

// Medians of replays of a captured graph, and the card's own limits from the same run.
struct GpuPoint {
  int64_t tokens = 0;
  double us = 0, us_min = 0, us_max = 0;
  double flops = 0, bytes = 0;  // of one forward
};
struct GpuLimits {
  double read_bytes = 0;  // per second
  double bf16_flops = 0;  // per second; 0: libcublasLt was not found
};
Result<GpuLimits> gpu_limits(int32_t device);
Result<GpuPoint> bench_on_gpu(const WeightSource& source, Model& model, const GpuBench& bench,
                              int64_t tokens);

}  // namespace moe::cli
