#include "router/logits.h"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"
#include "runtime/rows.cuh"

namespace moe::cuda {
namespace {

// ---- few rows: a block a candidate and kFew rows, its threads share the inputs

constexpr int kFew = 8;
constexpr int kFewThreads = 128;

template <bool kVector>
__device__ void add_products(const LogitsArgs& args, const void* weight, DType type,
                             int64_t candidate, int64_t first, int count, float (&sum)[kFew]) {
  constexpr int kStep = kVector ? 8 : 1;
  for (int64_t h = threadIdx.x * kStep; h < args.hidden; h += kFewThreads * kStep) {
    float w[kStep];
    if constexpr (kVector)
      load_8(weight, type, candidate * args.hidden + h, w);
    else
      w[0] = load_float(weight, type, candidate * args.hidden + h);
#pragma unroll
    for (int r = 0; r < kFew; ++r) {
      if (r >= count) break;
      const int64_t at = (first + r) * args.rows.stride + h;
      float x[kStep];
      if constexpr (kVector)
        load_8(args.rows.data, args.rows.type, at, x);
      else
        x[0] = load_float(args.rows.data, args.rows.type, at);
#pragma unroll
      for (int i = 0; i < kStep; ++i) sum[r] = fmaf(x[i], w[i], sum[r]);
    }
  }
}

template <bool kVector>
__global__ void __launch_bounds__(kFewThreads) few_logits(const LogitsArgs args) {
  __shared__ float part[kFewThreads / 32][kFew];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int candidate = blockIdx.x;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kFew;
  const int64_t left = args.note->rows - first;
  if (left <= 0) return;
  const int count = left < kFew ? static_cast<int>(left) : kFew;
  const DeviceBlock& block = args.note->table.block;
  float sum[kFew] = {};
  add_products<kVector>(args, block.router_weight, block.router_type, candidate, first, count, sum);
#pragma unroll
  for (int r = 0; r < kFew; ++r)
    for (int d = 16; d > 0; d /= 2) sum[r] += __shfl_xor_sync(~0u, sum[r], d);
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int r = 0; r < kFew; ++r) part[threadIdx.x / 32][r] = sum[r];
  __syncthreads();
  const int r = threadIdx.x;
  if (r >= count) return;
  float logit = (part[0][r] + part[1][r]) + (part[2][r] + part[3][r]);
  if (block.logit_bias) logit += block.logit_bias[candidate];
  args.logits[(first + r) * args.candidates + candidate] = logit;
}

// ---- many rows: tiles of 64 rows by 64 candidates, a thread 4 by 4 of them

constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kPitch = kTile + 4;

// 4 inputs of one row into column `row` of a transposed tile; zero outside.
template <bool kVector>
__device__ void stage(const void* data, DType type, int64_t at, int64_t left, bool inside, int row,
                      int k, float (*tile)[kPitch]) {
  float v[4] = {};
  if (inside) {
    if (kVector && left >= 4) {
      if (type == DType::f32) {
        const float4 raw = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
        v[0] = raw.x, v[1] = raw.y, v[2] = raw.z, v[3] = raw.w;
      } else {
        const uint2 raw = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + at);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          v[i] = load_float(reinterpret_cast<const uint16_t*>(&raw), type, i);
      }
    } else {
      for (int i = 0; i < 4; ++i)
        if (i < left) v[i] = load_float(data, type, at + i);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) tile[k + i][row] = v[i];
}

template <bool kVector>
__global__ void __launch_bounds__(256) many_logits(const LogitsArgs args) {
  __shared__ float x[kDepth][kPitch], w[kDepth][kPitch];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int first = blockIdx.y * kTile;
  const int64_t rows = args.note->rows;
  if (first_row >= rows) return;
  const DeviceBlock& block = args.note->table.block;
  const int row = threadIdx.x / 4, k = threadIdx.x % 4 * 4;
  const int ty = threadIdx.x / 16 * 4, tx = threadIdx.x % 16 * 4;
  float sum[4][4] = {};
  for (int64_t h = 0; h < args.hidden; h += kDepth) {
    const int64_t left = args.hidden - h - k;
    stage<kVector>(args.rows.data, args.rows.type, (first_row + row) * args.rows.stride + h + k,
                   left, first_row + row < rows && left > 0, row, k, x);
    stage<kVector>(block.router_weight, block.router_type,
                   static_cast<int64_t>(first + row) * args.hidden + h + k, left,
                   first + row < args.candidates && left > 0, row, k, w);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const float4 a = *reinterpret_cast<const float4*>(&x[d][ty]);
      const float4 b = *reinterpret_cast<const float4*>(&w[d][tx]);
      const float as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(as[i], bs[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int candidate = first + tx + j;
      if (first_row + ty + i >= rows || candidate >= args.candidates) continue;
      const float bias = block.logit_bias ? block.logit_bias[candidate] : 0.0f;
      args.logits[(first_row + ty + i) * args.candidates + candidate] = sum[i][j] + bias;
    }
}

// ---- a warp a row

__device__ double sum_of_warp(double value) {
  for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(~0u, value, d);
  return value;
}

__device__ int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
}

__global__ void __launch_bounds__(256) normalize(const NormalizeArgs args) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t row = row_of_warp();
  if (row >= args.note->rows) return;
  const float* scale = args.note->table.block.input_scale;
  const int64_t from = row * args.rows.stride;
  double squares = 0;
  for (int64_t h = threadIdx.x % 32; h < args.hidden; h += 32) {
    const double x = load_float(args.rows.data, args.rows.type, from + h);
    squares += x * x;
  }
  const double size = static_cast<double>(args.hidden);
  const double factor = 1 / sqrt((sum_of_warp(squares) / size + args.epsilon) * size);
  for (int64_t h = threadIdx.x % 32; h < args.hidden; h += 32)
    args.out[row * args.hidden + h] = static_cast<float>(
        load_float(args.rows.data, args.rows.type, from + h) * factor * (scale ? scale[h] : 1.0f));
}

__global__ void __launch_bounds__(256) shared_gate(const SharedGateArgs args) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t row = row_of_warp();
  if (row >= args.note->rows) return;
  const float* weight = args.note->table.block.shared_gate;
  double dot = 0;
  for (int64_t h = threadIdx.x % 32; h < args.hidden; h += 32)
    dot += static_cast<double>(
               load_float(args.rows.data, args.rows.type, row * args.rows.stride + h)) *
           weight[h];
  dot = sum_of_warp(dot);
  if (threadIdx.x % 32 == 0) args.gate[row] = static_cast<float>(1 / (1 + exp(-dot)));
}

unsigned blocks_of(int64_t count, int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

}  // namespace

cudaError_t launch_logits(const LogitsArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  const bool vector = args.hidden % 8 == 0 && aligned_by_8(args.rows);
  constexpr int64_t kMostFew = int64_t{65535} * kFew;  // rows of a grid
  // A grid of few tiles waits for memory: 200 us at 64 rows of 64 candidates.
  if (!args.batch_invariant &&
      (args.tokens <= 64 * kFew || (args.candidates <= 16 && args.tokens <= kMostFew))) {
    const dim3 grid(static_cast<unsigned>(args.candidates), blocks_of(args.tokens, kFew));
    return launch(vector ? few_logits<true> : few_logits<false>, grid, kFewThreads, 0, stream,
                  args);
  }
  const dim3 grid(blocks_of(args.tokens, kTile), blocks_of(args.candidates, kTile));
  return launch(vector ? many_logits<true> : many_logits<false>, grid, 256, 0, stream, args);
}

cudaError_t launch_normalize(const NormalizeArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  return launch(normalize, blocks_of(args.tokens, 8), 256, 0, stream, args);
}

cudaError_t launch_shared_gate(const SharedGateArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  return launch(shared_gate, blocks_of(args.tokens, 8), 256, 0, stream, args);
}

}  // namespace moe::cuda
