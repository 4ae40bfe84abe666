// Products of one candidate's weights with few rows, by neighbouring threads that share the inputs.
#pragma once

#include "router/logits.h"
#include "runtime/rows.cuh"

namespace moe::cuda {

inline constexpr int kFewRows = 8;  // at a time

// What an input x at h of row r counts as.
struct AsTheyAre {
  __device__ float operator()(int, int64_t, float x) const { return x; }
  __device__ AsTheyAre from(int64_t) const { return {}; }  // of the rows from this one on
};
struct Normalized {
  const double* factor;  // of each row
  const float* scale;    // (hidden), or null
  __device__ float operator()(int r, int64_t h, float x) const {
    return static_cast<float>(x * factor[r] * (scale ? scale[h] : 1.0f));
  }
  __device__ Normalized from(int64_t row) const { return {factor + row, scale}; }
};

// sum[r] += what `thread` of `threads` adds to the product of rows[first + r] with weights from
// `from` on. kVector: 8 inputs at a time.
template <bool kVector, class Input>
__device__ void add_products(const Rows& rows, int64_t hidden, const void* weight, DType type,
                             int64_t from, int64_t first, int count, int thread, int threads,
                             const Input& input, float (&sum)[kFewRows]) {
  constexpr int kStep = kVector ? 8 : 1;
#pragma unroll 2
  for (int64_t h = thread * kStep; h < hidden; h += threads * kStep) {
    float w[kStep];
    if constexpr (kVector)
      load_8(weight, type, from + h, w);
    else
      w[0] = load_float(weight, type, from + h);
#pragma unroll
    for (int r = 0; r < kFewRows; ++r) {
      if (r >= count) break;
      const int64_t at = (first + r) * rows.stride + h;
      float x[kStep];
      if constexpr (kVector)
        load_8(rows.data, rows.type, at, x);
      else
        x[0] = load_float(rows.data, rows.type, at);
#pragma unroll
      for (int i = 0; i < kStep; ++i) sum[r] = fmaf(input(r, h + i, x[i]), w[i], sum[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kFewRows; ++r)
    for (int d = 16; d > 0; d /= 2) sum[r] += __shfl_xor_sync(~0u, sum[r], d);
}

__device__ inline double sum_of_warp(double value) {
  for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(~0u, value, d);
  return value;
}

// What a row's inputs are multiplied with by RMS normalisation times hidden^-0.5, by one warp.
__device__ inline double norm_factor(const Rows& rows, int64_t row, int64_t hidden, float epsilon) {
  double squares = 0;
  for (int64_t h = threadIdx.x % 32; h < hidden; h += 32) {
    const double x = load_float(rows.data, rows.type, row * rows.stride + h);
    squares += x * x;
  }
  const double size = static_cast<double>(hidden);
  return 1 / sqrt((sum_of_warp(squares) / size + epsilon) * size);
}

// Of `count` rows from `first` on, by all warps of a block; ends with a barrier.
__device__ inline void norm_factors(const LogitsArgs& args, int64_t first, int count,
                                    double* factor) {
  for (int r = threadIdx.x / 32; r < count; r += blockDim.x / 32) {
    const double of_row = norm_factor(args.rows, first + r, args.hidden, args.epsilon);
    if (threadIdx.x % 32 == 0) factor[r] = of_row;
  }
  __syncthreads();
}

// sigmoid(weight . row), by one warp.
__device__ inline float gate_of_row(const Rows& rows, int64_t row, int64_t hidden,
                                    const float* weight) {
  double dot = 0;
  for (int64_t h = threadIdx.x % 32; h < hidden; h += 32)
    dot += static_cast<double>(load_float(rows.data, rows.type, row * rows.stride + h)) * weight[h];
  return static_cast<float>(1 / (1 + exp(-sum_of_warp(dot))));
}

}  // namespace moe::cuda
