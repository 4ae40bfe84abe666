#include <algorithm>

#include "gemm/activation.cuh"
#include "gemm/decode.h"
#include "gemm/decode_unit.cuh"
#include "permute/weighted_sum.cuh"
#include "runtime/finish.cuh"
#include "runtime/launch.cuh"

namespace moe::cuda {
namespace decode {
namespace {

struct Args {
  GroupedGemmArgs gemm[2];
  CombineArgs sum;
  uint32_t* blocks_done;
};

constexpr int64_t most_tiles(const CombineArgs& sum) { return sum.tokens * (sum.top_k + 1); }

// ---- what a block keeps in shared memory behind its rings

// Where the row of a routed expert comes from.
struct Source {
  int token;
  float factor;
};

// The tiles: the routed experts', then the shared one's.
struct Tiles {
  Tile* tile;
  int routed, all;

  // By all threads; a barrier must follow.
  __device__ Tiles(const Args& args, std::byte* raw) : tile(reinterpret_cast<Tile*>(raw)) {
    routed = all = __ldcg(args.gemm[0].tile_count);
    if (args.gemm[1].tile_count) all += __ldcg(args.gemm[1].tile_count);
    for (int i = threadIdx.x; i < all; i += kThreads) {
      const int network = i >= routed;
      const GroupedGemmArgs& gemm = args.gemm[network];
      const int4* entry = reinterpret_cast<const int4*>(gemm.tiles + i - network * routed);
      const int4 a = __ldcg(entry);  // slot, first, tiles, row
      const int begin = (i - network * routed - a.y) * kDecodeTokens;
      tile[i] = {gemm.weight_base + a.x * gemm.slot_bytes,
                 static_cast<int>(gemm.depth) * 2,
                 gemm.activated,
                 a.x,
                 a.w + begin,
                 min(kDecodeTokens, __ldcg(entry + 1).x - begin),
                 network};
    }
  }
  __device__ int routed_rows() const {
    return routed > 0 ? tile[routed - 1].row + tile[routed - 1].rows : 0;
  }
};

// Rows that every warp is about to read, into L1: as many as a read of each thread reaches.
__device__ void warm(const std::byte* rows, int64_t bytes, int* scratch) {
  const int64_t at = threadIdx.x * 128;
  if (at < bytes) scratch[threadIdx.x] = *reinterpret_cast<const int*>(rows + at);
}

// ---- the pairs of a warp

// Calls f(tile, pair, i, products, bias) for row i of the tile and each of the warp's pairs from
// `place` on, in one lane. row_of(tile, i): which of the GEMM's rows that is.
template <class RowOf, class F>
__device__ __forceinline__ void for_each_product(const Args& args, Stream& stream,
                                                 const Tiles& tiles, const Range& range,
                                                 Place place, const RowOf& row_of, const F& f) {
#pragma unroll 1
  for (; place.left > 0; place.advance(tiles.tile, range, kWarps)) {
    const Tile tile = tiles.tile[place.tile];
    const GroupedGemmArgs& gemm = args.gemm[tile.network];
    float2 bias = {0, 0};
    if (gemm.bias) {
      const int2 rows =
          rows_of_pair(tile.interleaved, static_cast<int>(gemm.weight_rows) - 1, place.pair);
      const float* of = reinterpret_cast<const float*>(gemm.bias + tile.slot * gemm.slot_bytes);
      bias = {__ldg(of + rows.x), __ldg(of + rows.y)};
    }
    Unit unit(gemm.row_base + row_of(tile, 0) * gemm.row_bytes,
              gemm.row_base + row_of(tile, tile.rows - 1) * gemm.row_bytes);
    unit.multiply(stream, tile.row_bytes);
    const float2 products = unit.products();
    const int lane = threadIdx.x % 32, i = lane / 16;
    if (lane % 16 == 0 && i < tile.rows) f(tile, place.pair, i, products, bias);
  }
}

// ---- gates and ups

// The block's share of all pairs of all tiles.
__device__ Place share_of_block(const Tiles& tiles, const Range& range) {
  const int64_t routed = static_cast<int64_t>(tiles.routed) * range.last[0];
  const int64_t all = routed + static_cast<int64_t>(tiles.all - tiles.routed) * range.last[1];
  const int64_t begin = all * blockIdx.x / gridDim.x;
  Place place;
  place.left = static_cast<int>(all * (blockIdx.x + 1) / gridDim.x - begin);
  if (place.left == 0) return place;
  const bool shared = begin >= routed;
  const int pairs = range.end(tiles.tile[shared ? tiles.routed : 0]);
  const int64_t at = shared ? begin - routed : begin;
  place.tile = (shared ? tiles.routed : 0) + static_cast<int>(at / pairs);
  place.pair = static_cast<int>(at % pairs);
  return place;
}

__global__ void __launch_bounds__(kThreads, 1) decode_gate_up(const __grid_constant__ Args args) {
  extern __shared__ __align__(128) std::byte raw[];
  __shared__ int scratch[kThreads];
  Stream stream(raw);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const CombineArgs& sum = args.sum;
  auto* sources = reinterpret_cast<Source*>(raw + kRingBytes + most_tiles(sum) * sizeof(Tile));
  const int pair = threadIdx.x;
  const int row = pair < sum.tokens * sum.top_k ? __ldcg(sum.row_of_pair + pair) : -1;
  const int64_t tokens = sum.note ? __ldcg(&sum.note->rows) : sum.tokens;
  const Tiles tiles(args, raw + kRingBytes);
  if (row >= 0)
    sources[row] = {pair / sum.top_k, sum.weights_on_input ? __ldcg(sum.weights + pair) : 1.0f};
  __syncthreads();

  const Range range{0, {pairs_of(args.gemm[0]), pairs_of(args.gemm[1])}};
  Place first = share_of_block(tiles, range);
  first.advance(tiles.tile, range, threadIdx.x / 32);
  stream.start(tiles.tile, range, INT32_MAX, first);  // their rows come in pairs
  warm(args.gemm[0].row_base, tokens * args.gemm[0].row_bytes, scratch);
  const auto row_of = [&](const Tile& tile, int i) {
    return tile.network ? tile.row + i : sources[tile.row + i].token;
  };
  for_each_product(args, stream, tiles, range, first, row_of,
                   [&](const Tile& tile, int pair, int i, float2 products, float2 bias) {
                     const GroupedGemmArgs& gemm = args.gemm[tile.network];
                     const Activating activating(gemm.activation, gemm.alpha, gemm.limit);
                     const float factor = tile.network ? 1.0f : sources[tile.row + i].factor;
                     const float gate = fmaf(products.x, factor, bias.x);
                     const float up = fmaf(products.y, factor, bias.y);
                     auto* out =
                         static_cast<__nv_bfloat16*>(gemm.out) + (tile.row + i) * gemm.out_stride;
                     if (gemm.activated) {
                       out[pair] = __float2bfloat16(activating(gate, up));
                     } else {
                       out[2 * pair] = __float2bfloat16(activating(gate, 1.0f));
                       out[2 * pair + 1] = __float2bfloat16(activating(up, 1.0f));
                     }
                   });
}

// ---- down, and the weighted sum

// What each row adds to the block's outputs: (outputs, pitch) f32.
struct Sums {
  float* sum;
  int pitch;
};
__host__ __device__ inline int pitch_of(const CombineArgs& sum) {  // odd: banks
  return static_cast<int>(sum.tokens) * (sum.top_k + 1) | 1;
}

// The rows of one output.
struct SummedRows {
  using Loaded = float;
  const float* sum;
  int64_t first_shared;
  __device__ float start(int32_t row, int64_t) const { return sum[row]; }
  __device__ void finish(float loaded, float (&x)[1]) const { x[0] = loaded; }
  __device__ void shared(int64_t token, int64_t, float (&x)[1]) const {
    x[0] = sum[first_shared + token];
  }
};

__device__ void write_outputs(const CombineArgs& args, const Order* orders, const Sums& sums,
                              const Range& range) {
  const int first = 2 * range.first;
  const int outputs = min(2 * range.last[0], static_cast<int>(args.hidden)) - first;
  const int64_t rows = args.note ? args.note->rows : args.tokens;
  for (int i = threadIdx.x; i < rows * outputs; i += kThreads) {
    const int token = i / outputs, output = i % outputs;
    const SummedRows of{sums.sum + output * sums.pitch, args.tokens * args.top_k};
    write_sum<1>(args, orders[token], of, token, first + output);
  }
}

// The last block to be done ends the forward.
__device__ void finish_last(const Args& args) {
  if (!args.sum.finish.counters && !args.sum.finish.report && !args.sum.finish.totals) return;
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(args.blocks_done, 1u) == gridDim.x - 1) finish(args.sum.finish);
}

__global__ void __launch_bounds__(kThreads, 1) decode_down(const __grid_constant__ Args args) {
  extern __shared__ __align__(128) std::byte raw[];
  __shared__ int scratch[kThreads];
  Stream stream(raw);
  const Tiles tiles(args, raw + kRingBytes);
  auto* orders = reinterpret_cast<Order*>(raw + kRingBytes + most_tiles(args.sum) * sizeof(Tile));
  const Sums sums{reinterpret_cast<float*>(orders + args.sum.tokens), pitch_of(args.sum)};
  __syncthreads();

  // The tiles were there before gate_up began: its outputs are what is waited for.
  const int pairs = pairs_of(args.gemm[0]);
  Range range;
  range.first = static_cast<int>(static_cast<int64_t>(pairs) * blockIdx.x / gridDim.x);
  range.last[0] = range.last[1] =
      static_cast<int>(static_cast<int64_t>(pairs) * (blockIdx.x + 1) / gridDim.x);
  Place first{0, range.first, tiles.all * (range.last[0] - range.first)};
  first.advance(tiles.tile, range, threadIdx.x / 32);
  stream.start(tiles.tile, range, static_cast<int>(args.gemm[0].weight_rows) - 1, first);
  for (int t = threadIdx.x / 32; t < args.sum.tokens; t += kWarps)
    sort_places(args.sum, t, orders + t);
  wait_for_previous_kernel();
  let_next_kernel_start();

  const auto row_of = [](const Tile& tile, int i) { return tile.row + i; };
  const int routed = static_cast<int>(args.sum.tokens) * args.sum.top_k;
  warm(args.gemm[0].row_base, tiles.routed_rows() * args.gemm[0].row_bytes, scratch);
  for_each_product(args, stream, tiles, range, first, row_of,
                   [&](const Tile& tile, int pair, int i, float2 products, float2 bias) {
                     float* to = sums.sum + 2 * (pair - range.first) * sums.pitch + tile.row + i +
                                 (tile.network ? routed : 0);
                     to[0] = products.x + bias.x;
                     to[sums.pitch] = products.y + bias.y;
                   });
  __syncthreads();
  write_outputs(args.sum, orders, sums, range);
  finish_last(args);
}

// ---- launches

int blocks_of_down(const FewArgs& args, int multiprocessors) {
  return std::min(multiprocessors, pairs_of(args.down[0]));
}

size_t gate_up_bytes(const FewArgs& args) {
  return kRingBytes + static_cast<size_t>(most_tiles(args.sum)) * sizeof(Tile) +
         static_cast<size_t>(args.sum.tokens * args.sum.top_k) * sizeof(Source);
}

size_t down_bytes(const FewArgs& args, int multiprocessors) {
  const int blocks = blocks_of_down(args, multiprocessors);
  const int outputs = 2 * ((pairs_of(args.down[0]) + blocks - 1) / blocks);
  return kRingBytes + static_cast<size_t>(most_tiles(args.sum)) * sizeof(Tile) +
         static_cast<size_t>(args.sum.tokens) * sizeof(Order) +
         static_cast<size_t>(outputs) * pitch_of(args.sum) * sizeof(float);
}

bool in_bf16(const GroupedGemmArgs& gemm) {
  return !gemm.tile_count || gemm.operands == Operands::bf16;
}

bool fits(const FewArgs& args, int multiprocessors) {
  constexpr size_t kMost = (227 << 10) - sizeof(int) * kThreads;
  return in_bf16(args.gate_up[0]) && in_bf16(args.gate_up[1]) &&
         args.sum.tokens * args.sum.top_k <= kThreads && gate_up_bytes(args) <= kMost &&
         down_bytes(args, multiprocessors) <= kMost;
}

cudaError_t launch(const FewArgs& args, int multiprocessors, cudaStream_t stream) {
  if (!fits(args, multiprocessors)) return cudaErrorInvalidValue;
  const Args first{{args.gate_up[0], args.gate_up[1]}, args.sum, args.counters};
  const Args second{{args.down[0], args.down[1]}, args.sum, args.counters};
  const cudaError_t error = cuda::launch(decode_gate_up, static_cast<unsigned>(multiprocessors),
                                         kThreads, gate_up_bytes(args), stream, first);
  if (error != cudaSuccess) return error;
  return cuda::launch(decode_down, static_cast<unsigned>(blocks_of_down(args, multiprocessors)),
                      kThreads, down_bytes(args, multiprocessors), stream, second);
}

}  // namespace
}  // namespace decode

const FewKernel kHopperDecode = {kDecodeTokens, decode::fits, decode::launch};

}  // namespace moe::cuda
