// What a block of few_tiles.cu works on: pieces of three steps, in one list. Each needs pieces
// before it alone, and pieces are drawn in order by blocks that run; so whatever a block waits for
// is done, or being done by one that does not wait for it, however few blocks run at a time.
#pragma once

#include "gemm/few_tiles.h"
#include "gemm/tile.cuh"

namespace moe::cuda::grouped {

enum class Step : int32_t {
  end,      // there is no more
  gate_up,  // 128 rows of gates and ups by the rows of one tile
  down,     // 128 outputs by these, once activated
  sum,      // 128 outputs of all tokens, once all rows of theirs are there
};

struct FewWork : Work {  // of sum: weight_row alone
  Step step = Step::end;
  int network = 0;  // 1: the shared expert
  int tile = 0;     // of both networks: the shared expert's come last
};

// What the kernel is given.
struct FewGemm {
  GroupedGemmArgs gate_up[2], down[2];  // the shared expert's last
  CombineArgs sum;
  uint32_t* counters;  // of FewArgs
  bool by_8;           // sums_by_8()

  // Of 128 weight rows.
  __host__ __device__ static int pieces_of(const GroupedGemmArgs& gemm) {
    return static_cast<int>((gemm.weight_rows + kTileRows - 1) / kTileRows);
  }
  __device__ const GroupedGemmArgs& gemm(const FewWork& work) const {
    return work.step == Step::gate_up ? gate_up[work.network] : down[work.network];
  }
  __device__ int tiles(int network) const {
    const int32_t* count = gate_up[network].tile_count;
    return count ? __ldcg(count) : 0;
  }

  __device__ uint32_t* drawn() const { return counters; }
  __device__ uint32_t* blocks_done() const { return counters + 1; }
  // How many pieces are stored: of down for the same outputs; of gate_up for the same tile.
  __device__ uint32_t* outputs(const FewWork& work) const {
    return counters + 2 + work.weight_row / kTileRows;
  }
  __device__ uint32_t* activated(const FewWork& work) const {
    return counters + 2 + pieces_of(down[0]) + work.tile;
  }
  __device__ uint32_t* stored(const FewWork& work) const {
    return work.step == Step::gate_up ? activated(work) : outputs(work);
  }
};

// The list, by the threads of one warp.
class FewList {
 public:
  // `tiles`: room in shared memory for all.
  __device__ FewList(const FewGemm& args, int4* tiles)
      : tiles_(tiles),
        routed_(args.tiles(0)),
        all_(routed_ + args.tiles(1)),
        gate_up_(FewGemm::pieces_of(args.gate_up[0])),
        shared_gate_up_(FewGemm::pieces_of(args.gate_up[1])),
        down_(FewGemm::pieces_of(args.down[0])) {
    for (int i = threadIdx.x % 32; i < all_; i += 32) {
      const int network = i >= routed_, at = i - network * routed_;
      const int4* entry = reinterpret_cast<const int4*>(args.gate_up[network].tiles + at);
      const int4 a = __ldcg(entry);  // slot, first, tiles, row
      const int begin = (at - a.y) * kFewTileTokens;
      tiles[i] = {a.x, a.w + begin, min(kFewTileTokens, __ldcg(entry + 1).x - begin), network};
    }
    __syncwarp();
  }

  __device__ FewWork at(int i) const {
    FewWork work;
    const int routed = routed_ * gate_up_, both = routed + (all_ - routed_) * shared_gate_up_;
    if (i < routed) {
      fill(&work, Step::gate_up, i / gate_up_, i % gate_up_);
    } else if (i < both) {
      const int of = i - routed;
      fill(&work, Step::gate_up, routed_ + of / shared_gate_up_, of % shared_gate_up_);
    } else if (i < both + all_ * down_) {
      fill(&work, Step::down, (i - both) / down_, (i - both) % down_);
    } else if (i < both + (all_ + 1) * down_) {
      work.step = Step::sum;
      work.weight_row = (i - both - all_ * down_) * kTileRows;
    }
    return work;
  }

 private:
  __device__ void fill(FewWork* work, Step step, int tile, int piece) const {
    const int4 of = tiles_[tile];
    *work = {{of.x, piece * kTileRows, of.y, of.z}, step, of.w, tile};
  }

  const int4* tiles_;
  int routed_, all_;                     // tiles
  int gate_up_, shared_gate_up_, down_;  // pieces of a tile
};

}  // namespace moe::cuda::grouped
