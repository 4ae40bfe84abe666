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

// Replays of a captured graph: microseconds a layer, and the work of one.
struct GpuPoint {
  int64_t tokens = 0;
  double us = 0, us_min = 0, us_max = 0;  // median, least, most
  int64_t replays = 0;
  double flops = 0, bytes = 0;  // weights, and rows in and out
};
// What the card itself could do, per second, measured in this run.
struct GpuLimits {
  double read_bytes = 0;
  double bf16_flops = 0, fp8_flops = 0;  // 0: libcublasLt was not found
  double flops(FormatKind weights) const {
    return weights == FormatKind::fp8_block ? fp8_flops : bf16_flops;
  }
};
Result<GpuLimits> gpu_limits(int32_t device);
Result<GpuPoint> bench_on_gpu(const WeightSource& source, Model& model, const GpuBench& bench,
                              int64_t tokens);

}  // namespace moe::cli
