#include "gpu.h"

namespace moe::cli {
namespace {
Status none() { return Status(StatusCode::unimplemented, "this build has no CUDA"); }
}  // namespace

Status forward_on_gpu(Model&, const LayerSpec&, Batch&) { return none(); }
Result<GpuLimits> gpu_limits(int32_t) { return none(); }
Result<GpuPoint> bench_on_gpu(const WeightSource&, Model&, const GpuBench&, int64_t) {
  return none();
}

}  // namespace moe::cli
