#include "permute/combine.h"
#include "permute/order.cuh"
#include "runtime/finish.cuh"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"
#include "runtime/rows.cuh"

namespace moe::cuda {
namespace {

template <int kCount>
__device__ void load(const void* data, DType type, int64_t at, float (&x)[kCount]) {
  if constexpr (kCount == 8)
    load_8(data, type, at, x);
  else
    x[0] = load_float(data, type, at);
}

template <int kCount>
__device__ void add(float (&sum)[kCount], float weight, const float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] = fmaf(weight, x[i], sum[i]);
}

// A place's kCount columns from `column` on, under way: each expert's row is read once.
template <int kCount>
struct Loaded {
  uint4 packed;
  __device__ void start(const CombineArgs& args, int32_t row, int64_t column) {
    if constexpr (kCount == 8)
      if (row >= 0)
        packed = __ldcs(reinterpret_cast<const uint4*>(args.rows + row * args.row_stride + column));
  }
  __device__ void finish(const CombineArgs& args, int32_t row, int64_t token, int64_t column,
                         float (&x)[kCount]) const {
    if (row < 0)
      load(args.from.data, args.from.type, token * args.from.stride + column, x);
    else if constexpr (kCount == 8)
      widen_8(packed, DType::bf16, x);
    else
      load(args.rows, DType::bf16, row * args.row_stride + column, x);
  }
};

// The sum of kCount columns from `column` on.
template <int kCount>
__device__ void sum_columns(const CombineArgs& args, const Order& order, int64_t token,
                            int64_t column) {
  constexpr int kAhead = 8;
  float sum[kCount] = {}, x[kCount];
  for (int first = 0; first < order.used; first += kAhead) {
    Loaded<kCount> loaded[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (first + j < order.used) loaded[j].start(args, order.row[first + j], column);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (first + j >= order.used) break;
      loaded[j].finish(args, order.row[first + j], token, column, x);
      add(sum, order.weight[first + j], x);
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] *= args.routed_scale;
  if (args.shared) {
    load(args.shared, DType::bf16, token * args.row_stride + column, x);
    add(sum, args.shared_scale * (args.shared_gate ? args.shared_gate[token] : 1.0f), x);
  }
  const int64_t at = token * args.out.stride + column;
  if (args.accumulate) {
    load(args.out.data, args.out.type, at, x);
    add(sum, 1.0f, x);
  }
  if constexpr (kCount == 8)
    store_8(args.out.data, args.out.type, at, sum);
  else
    store_float(args.out.data, args.out.type, at, sum[0]);
}

// A block a token and a part of its columns, kCount of them a thread.
template <int kCount>
__global__ void combine(const CombineArgs args) {
  __shared__ Order order;
  const int64_t token = blockIdx.x;
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) finish(args.finish);
  if (args.note && token >= args.note->rows) return;
  if (threadIdx.x < 32) sort_places(args, token, &order);
  __syncthreads();
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kCount;
  if (column < args.hidden) sum_columns<kCount>(args, order, token, column);
}

}  // namespace

cudaError_t launch_combine(const CombineArgs& args, cudaStream_t stream) {
  if (args.top_k < 1 || args.top_k > 32 || args.row_stride % 8 != 0) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  const bool vector = args.hidden % 8 == 0 && aligned_by_8(args.out) && aligned_by_8(args.from);
  const int threads = args.tokens < 64 ? 64 : 256;
  const int columns = threads * (vector ? 8 : 1);
  const dim3 grid(static_cast<unsigned>(args.tokens),
                  static_cast<unsigned>((args.hidden + columns - 1) / columns));
  return launch(vector ? combine<8> : combine<1>, grid, threads, 0, stream, args);
}

}  // namespace moe::cuda
