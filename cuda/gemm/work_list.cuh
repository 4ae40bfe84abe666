// What a persistent block of a grouped GEMM computes: one output tile after another.
#pragma once

#include "gemm/grouped_gemm.h"
#include "runtime/ptx.cuh"

namespace moe::cuda {

// One output tile.
struct Work {
  int slot = 0;
  int weight_row = 0;  // first of the tile
  int row = 0;         // first permuted row
  int rows = 0;        // of it: 1 ... the kernel's most
};

// Tiles of kRows weight rows; blocks of a cluster take neighbouring ones of the same token rows.
template <int kRows, int kCluster, int kGranule = 8>
struct TileList {
  static constexpr int kPatch = 8;
  static constexpr int kStep = kCluster * kRows;  // weight rows of a cluster
  const TokenTile* tiles;
  int weight_tiles;
  int64_t total;
  int64_t at = blockIdx.x / kCluster;

  __device__ explicit TileList(const GroupedGemmArgs& args)
      : tiles(args.tiles),
        weight_tiles((args.weight_rows + kStep - 1) / kStep),
        total(static_cast<int64_t>(__ldcg(args.tile_count)) * weight_tiles) {}

  // Tiles that run together form a near-square patch of one expert: kPatch token tiles by all
  // weight tiles, so that both sides are read from L2. An expert's token tiles have equal sizes,
  // multiples of kGranule, but for the last.
  __device__ bool take(Work* work) {
    if (at >= total) return false;
    const int4* entry = reinterpret_cast<const int4*>(tiles + at / weight_tiles);
    const int4 a = __ldcg(entry);  // slot, first, tiles, row
    const int rows = __ldcg(entry + 1).x;
    const int local = static_cast<int>(at - static_cast<int64_t>(a.y) * weight_tiles);
    const int size = (rows + a.z * kGranule - 1) / (a.z * kGranule) * kGranule;
    const int patch = local / (kPatch * weight_tiles) * kPatch;
    const int width = min(kPatch, a.z - patch);
    const int inside = local - patch * weight_tiles;
    const int begin = (patch + inside % width) * size;
    int rank = 0;
    if constexpr (kCluster > 1) rank = static_cast<int>(cluster_rank());
    *work = {a.x, inside / width * kStep + rank * kRows, a.w + begin,
             max(0, min(size, rows - begin))};
    at += gridDim.x / kCluster;
    return true;
  }
};

}  // namespace moe::cuda
