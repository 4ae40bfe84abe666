// The expert GEMMs on Hopper: for every expert, out rows = its rows times its matrix, transposed.
//
// One producer warpgroup fills a ring in shared memory: weights with the copy engine, from the
// expert's slot; token rows with it too, or with cp.async where they are scattered. Two consumer
// warpgroups multiply. The grid is persistent; the work list is PermuteArgs::tiles.
//
// On bf16 rows (grouped_gemm.cuh) weights are the M side of the matrix units and tokens the N side
// (8 ... 256), so that an expert with 3 tokens costs 8 columns and not 128. On e4m3 rows
// (grouped_gemm_w8a8.cu) tokens are the M side, so that a thread scales two tokens and not 32.
//
// Tried and lost: scattered rows by the copy engine, a box of one row each: 45 cycles a box, 95
// TFLOP/s. Scattered rows by cp.async for large tiles: 330 TFLOP/s; a copy beforehand is faster.
// Tiles of 64 weight rows for one token: 10 ... 25 % slower than 128, but for Mixtral (9 % faster).
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "permute/permute.h"

namespace moe::cuda {

// What is multiplied. e4m3 weights have a scale per 128 x 128 block, e4m3 rows one per 128 inputs;
// what the matrix units make of 128 inputs is scaled and added in fp32 outside them.
enum class Operands : int32_t {
  bf16,
  w8a8,   // e4m3 by e4m3, medium and large tiles; an activated output is e4m3 too
  w8a16,  // e4m3, widened to bf16 in registers, by bf16; small and medium tiles
};

// A kernel's size class: weight rows x most tokens of a tile. A w8a8 tile is 256 x 128. Large tiles
// come in pairs that share token rows.
enum class TileClass : int32_t {
  small,   // 128 x 32
  medium,  // 128 x 128
  large,   // 128 x 256
};

struct GroupedGemmArgs {
  Operands operands = Operands::bf16;

  // The matrix of every slot: boxes of kTileRows rows; and where it begins in slot 0.
  CUtensorMap weights;
  const std::byte* weight_base = nullptr;
  int64_t weight_rows = 0;  // of a slot's matrix
  int64_t depth = 0;        // columns of it that count: elements of a token row

  const TokenTile* tiles = nullptr;
  const int32_t* tile_count = nullptr;

  // Token rows: in permuted order, through a map with boxes of token_box() rows or from
  // row_base[permuted row]; or, bf16 in tiles that gather, from row_base[row_index[permuted row]].
  CUtensorMap rows;
  const int32_t* row_index = nullptr;  // null: in order
  const std::byte* row_base = nullptr;
  int64_t row_bytes = 0;  // multiple of 16

  // Scales. Weights': in slot 0, and from there by slot_bytes.
  const std::byte* weight_scales = nullptr;  // w8a8, w8a16
  const float* row_scales = nullptr;         // w8a8: (scale_blocks(depth), row_scale_stride)
  int64_t row_scale_stride = 0;              // at least the permuted rows
  const std::byte* bias = nullptr;           // f32 (weight_rows) in slot 0; null: none
  int64_t slot_bytes = 0;

  // One row a permuted row: bf16, or e4m3 in the order of e4m3_column(). Activated: weight_rows / 2
  // columns.
  void* out = nullptr;
  int64_t out_stride = 0;  // elements, multiple of 16 bytes
  int64_t out_columns = 0;
  float* out_scales = nullptr;  // of e4m3: (scale_blocks(out_columns), out_scale_stride)
  int64_t out_scale_stride = 0;

  // Gate and up rows are interleaved (gemm/layout.h), and activation(gate, up) is what is stored.
  int32_t activated = 0;
  int32_t unary = 0;       // there is no gate: activation(up) is what is stored
  int32_t activation = 0;  // moe::Activation
  float alpha = 0, limit = 0;

  // A row's bits do not depend on how many rows its tile has.
  int32_t batch_invariant = 0;

  // The weights were ready before the kernel in front of this one: start to load them at once.
  int32_t weights_early = 0;
};

inline constexpr int32_t kTileRows = 128;
constexpr int32_t tile_tokens(TileClass size, Operands operands = Operands::bf16) {
  if (size == TileClass::small) return 32;
  return size == TileClass::medium || operands != Operands::bf16 ? 128 : 256;
}
constexpr int32_t token_box(TileClass size) { return size == TileClass::small ? 8 : 32; }
constexpr bool gathers(TileClass size) { return size != TileClass::large; }

// Few rows per expert: bandwidth decides, and stages of the ring count. Many: arithmetic does.
constexpr TileClass choose_tile_class(int64_t tokens, int32_t top_k, int64_t num_experts) {
  const int64_t mean = tokens * top_k / num_experts;
  return mean <= 6 ? TileClass::small : mean <= 72 ? TileClass::medium : TileClass::large;
}

// Whether a copy of the rows in permuted order pays.
constexpr bool choose_gather(int64_t tokens, int32_t top_k, int64_t num_experts) {
  return tokens * top_k / num_experts >= 24;
}

struct FewKernel;  // gemm/few.h
extern const FewKernel kHopperDecode, kHopperFewTiles;

// What a backend multiplies with. `max_tiles` bounds *tile_count; `multiprocessors` is the
// device's. cudaErrorInvalidValue for operands and sizes without a kernel.
struct GroupedGemmKernel {
  cudaError_t (*launch)(TileClass size, const GroupedGemmArgs& args, int64_t max_tiles,
                        int multiprocessors, cudaStream_t stream);
  bool copy_engine;  // reads through the maps, and serves every class; otherwise the bases, and not
                     // the largest
  const FewKernel* decode;     // for one or two rows; or null
  const FewKernel* few_tiles;  // for few rows; or null
};

cudaError_t launch_grouped_gemm(TileClass size, const GroupedGemmArgs& args, int64_t max_tiles,
                                int multiprocessors, cudaStream_t stream);
inline constexpr GroupedGemmKernel kHopper = {launch_grouped_gemm, true, &kHopperDecode,
                                              &kHopperFewTiles};

// Its kernels, a file each.
namespace grouped {
cudaError_t launch_bf16(TileClass size, const GroupedGemmArgs& args, int64_t max_tiles,
                        int multiprocessors, cudaStream_t stream);
cudaError_t launch_w8a8(TileClass size, const GroupedGemmArgs& args, int64_t max_tiles,
                        int multiprocessors, cudaStream_t stream);
cudaError_t launch_w8a16(TileClass size, const GroupedGemmArgs& args, int64_t max_tiles,
                         int multiprocessors, cudaStream_t stream);
}  // namespace grouped

}  // namespace moe::cuda
