#include "permute/combine.h"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

__device__ inline void add_scaled(float (&sum)[8], float weight, const uint4& row) {
  const uint32_t words[4] = {row.x, row.y, row.z, row.w};
  for (int i = 0; i < 4; ++i) {
    sum[2 * i] = fmaf(weight, __uint_as_float(words[i] << 16), sum[2 * i]);
    sum[2 * i + 1] = fmaf(weight, __uint_as_float(words[i] & 0xFFFF0000u), sum[2 * i + 1]);
  }
}

// A block a token and a part of its columns; 8 columns a thread.
__global__ void combine(const CombineArgs args) {
  __shared__ int32_t row[32];
  __shared__ float weight[32];
  __shared__ int used;
  const int64_t token = blockIdx.x;
  wait_for_previous_kernel();
  let_next_kernel_start();

  if (threadIdx.x < 32) {  // sort the places by row; places without an expert fall out
    const int place = threadIdx.x;
    const bool valid = place < args.top_k;
    const int64_t pair = token * args.top_k + place;
    const int32_t mine = valid ? args.row_of_pair[pair] : -1;
    int rank = 0, count = 0;
    for (int j = 0; j < args.top_k; ++j) {
      const int32_t other = __shfl_sync(~0u, mine, j);
      rank += other >= 0 && other < mine;
      count += other >= 0;
    }
    if (mine >= 0) {
      row[rank] = mine;
      weight[rank] = args.weights[pair];
    }
    if (place == 0) used = count;
  }
  __syncthreads();

  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * 8;
  if (column >= args.hidden) return;
  float sum[8] = {};
#pragma unroll 4
  for (int j = 0; j < used; ++j)
    add_scaled(sum, weight[j],
               *reinterpret_cast<const uint4*>(args.rows + row[j] * args.hidden + column));
  const int64_t at = token * args.hidden + column;
  if (args.out_f32) {
    float4* to = reinterpret_cast<float4*>(args.out_f32 + at);
    to[0] = {sum[0], sum[1], sum[2], sum[3]};
    to[1] = {sum[4], sum[5], sum[6], sum[7]};
  } else {
    __nv_bfloat162 packed[4];
    for (int i = 0; i < 4; ++i) packed[i] = __floats2bfloat162_rn(sum[2 * i], sum[2 * i + 1]);
    *reinterpret_cast<uint4*>(args.out_bf16 + at) = *reinterpret_cast<uint4*>(packed);
  }
}

}  // namespace

cudaError_t launch_combine(const CombineArgs& args, cudaStream_t stream) {
  if (args.top_k < 1 || args.top_k > 32 || args.hidden % 8 != 0) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  const int threads = args.tokens < 64 ? 64 : 256;
  const dim3 grid(static_cast<unsigned>(args.tokens),
                  static_cast<unsigned>((args.hidden + threads * 8 - 1) / (threads * 8)));
  return launch(combine, grid, threads, 0, stream, args);
}

}  // namespace moe::cuda
