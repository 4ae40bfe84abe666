#include <algorithm>

#include "router/few_products.cuh"
#include "runtime/enter.cuh"
#include "runtime/launch.cuh"

namespace moe::cuda {
namespace {

// ---- few rows: a block a candidate, its threads share the inputs

constexpr int kFewThreads = 128;
constexpr unsigned kMostBlocks = 2112;  // 16 of each multiprocessor

struct FewShared {
  Beginning begin;
  double factor[kFewRows];
  float part[kFewThreads / 32][kFewRows];
};

template <bool kVector>
__device__ void few_rows(const LogitsArgs& args, FewShared& s, int64_t first, int count) {
  const DeviceBlock& block = s.begin.head.block;
  const int candidate = blockIdx.x;
  float sum[kFewRows] = {};
  const auto add = [&](const auto& input) {
    add_products<kVector>(args.rows, args.hidden, block.router_weight, block.router_type,
                          candidate * args.hidden, first, count, threadIdx.x, kFewThreads, input,
                          sum);
  };
  if (args.normalize) {
    norm_factors(args, first, count, s.factor);
    add(Normalized{s.factor, block.input_scale});
  } else {
    add(AsTheyAre());
  }
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int r = 0; r < kFewRows; ++r) s.part[threadIdx.x / 32][r] = sum[r];
  __syncthreads();
  const int r = threadIdx.x;
  if (r < count) {
    float logit = (s.part[0][r] + s.part[1][r]) + (s.part[2][r] + s.part[3][r]);
    if (block.logit_bias) logit += block.logit_bias[candidate];
    args.logits[(first + r) * args.begin.candidates + candidate] = logit;
  }
  __syncthreads();
}

template <bool kVector>
__global__ void __launch_bounds__(kFewThreads, 8)
    few_logits(const __grid_constant__ LogitsArgs args) {
  __shared__ FewShared s;
  begin_forward(args.begin, &s.begin);
  for (int64_t first = static_cast<int64_t>(blockIdx.y) * kFewRows; first < s.begin.rows;
       first += static_cast<int64_t>(gridDim.y) * kFewRows)
    few_rows<kVector>(args, s, first,
                      static_cast<int>(min(s.begin.rows - first, int64_t{kFewRows})));
  is_last_block(args.begin.counters);
}

// ---- many rows: tiles of 64 rows by 64 candidates, a thread 4 by 4 of them

constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kPitch = kTile + 4;

// 4 inputs of one row, as count_as(i, x), into column `row` of a transposed tile; zero outside.
template <bool kVector, class F>
__device__ void stage(const void* data, DType type, int64_t at, int64_t left, bool inside, int row,
                      int k, float (*tile)[kPitch], const F& count_as) {
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
  for (int i = 0; i < 4; ++i) tile[k + i][row] = i < left ? count_as(i, v[i]) : 0;
}

struct ManyShared {
  Beginning begin;
  double factor[kTile];
  alignas(16) float x[kDepth][kPitch], w[kDepth][kPitch];
};

template <bool kVector, class Input>
__device__ void many_rows(const LogitsArgs& args, ManyShared& s, const Input& input) {
  const int64_t rows = s.begin.rows, first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int candidates = args.begin.candidates, first = blockIdx.y * kTile;
  const DeviceBlock& block = s.begin.head.block;
  const int row = threadIdx.x / 4, k = threadIdx.x % 4 * 4;
  const int ty = threadIdx.x / 16 * 4, tx = threadIdx.x % 16 * 4;
  float sum[4][4] = {};
  for (int64_t h = 0; h < args.hidden; h += kDepth) {
    const int64_t left = args.hidden - h - k;
    stage<kVector>(args.rows.data, args.rows.type, (first_row + row) * args.rows.stride + h + k,
                   left, first_row + row < rows && left > 0, row, k, s.x,
                   [&](int i, float x) { return input(row, h + k + i, x); });
    stage<kVector>(block.router_weight, block.router_type,
                   static_cast<int64_t>(first + row) * args.hidden + h + k, left,
                   first + row < candidates && left > 0, row, k, s.w,
                   [](int, float w) { return w; });
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const float4 a = *reinterpret_cast<const float4*>(&s.x[d][ty]);
      const float4 b = *reinterpret_cast<const float4*>(&s.w[d][tx]);
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
      if (first_row + ty + i >= rows || candidate >= candidates) continue;
      const float bias = block.logit_bias ? block.logit_bias[candidate] : 0.0f;
      args.logits[(first_row + ty + i) * candidates + candidate] = sum[i][j] + bias;
    }
}

template <bool kVector>
__global__ void __launch_bounds__(256) many_logits(const __grid_constant__ LogitsArgs args) {
  __shared__ ManyShared s;
  begin_forward(args.begin, &s.begin);
  const int64_t left = s.begin.rows - static_cast<int64_t>(blockIdx.x) * kTile;
  if (left > 0 && args.normalize) {
    norm_factors(args, static_cast<int64_t>(blockIdx.x) * kTile,
                 static_cast<int>(min(left, int64_t{kTile})), s.factor);
    many_rows<kVector>(args, s, Normalized{s.factor, s.begin.head.block.input_scale});
  } else if (left > 0) {
    many_rows<kVector>(args, s, AsTheyAre());
  }
  is_last_block(args.begin.counters);
}

// ---- a warp a row

__device__ int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
}

__global__ void __launch_bounds__(256) shared_gate(const SharedGateArgs args) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t row = row_of_warp();
  if (row >= args.note->rows) return;
  const float gate = gate_of_row(args.rows, row, args.hidden, args.note->table.block.shared_gate);
  if (threadIdx.x % 32 == 0) args.gate[row] = gate;
}

unsigned blocks_of(int64_t count, int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

}  // namespace

cudaError_t launch_logits(const LogitsArgs& args, cudaStream_t stream) {
  const int64_t tokens = args.begin.tokens;
  const auto candidates = static_cast<unsigned>(args.begin.candidates);
  if (tokens == 0) return cudaSuccess;
  const bool vector = args.hidden % 8 == 0 && aligned_by_8(args.rows);
  // A grid of few tiles waits for memory: 200 us at 64 rows of 64 candidates.
  if (!args.batch_invariant && (tokens <= 64 * kFewRows || candidates <= 16)) {
    const unsigned most = std::max(1u, kMostBlocks / candidates);
    const dim3 grid(candidates, std::min(most, blocks_of(tokens, kFewRows)));
    return launch(vector ? few_logits<true> : few_logits<false>, grid, kFewThreads, 0, stream,
                  args);
  }
  const dim3 grid(blocks_of(tokens, kTile), blocks_of(candidates, kTile));
  return launch(vector ? many_logits<true> : many_logits<false>, grid, 256, 0, stream, args);
}

cudaError_t launch_shared_gate(const SharedGateArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  return launch(shared_gate, blocks_of(args.tokens, 8), 256, 0, stream, args);
}

}  // namespace moe::cuda
