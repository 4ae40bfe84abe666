// The weighted sum in the down kernel of few_tiles.h: each consumer counts itself among those that
// have stored a tile's rows of its 64 outputs, and the last one sums them for all tokens.
//
// What makes the rows visible to it: the threads of a consumer store, and meet at a barrier; one of
// them fences, counts, fences; the barrier that tells the others the count's answer comes after. So
// all stores of all consumers are before the sum's loads, which go to L2.
#pragma once

#include "gemm/few_tiles.h"
#include "permute/weighted_sum.cuh"
#include "runtime/finish.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda::grouped {

inline constexpr int kSumColumns = 64;   // outputs of a consumer
inline constexpr int kBlockBarrier = 3;  // of all consumers; 1 and 2: of each

// What a kernel of few_tiles.h is given.
struct FewGemm {
  GroupedGemmArgs gemm[2];  // the shared expert's last
  CombineArgs sum;
  uint32_t* done;  // of FewArgs
  bool by_8;       // sums_by_8()
};

class FewSum {
 public:
  // Needs what was there before the kernel in front of this one began. `orders`: of each token, in
  // shared memory.
  __device__ FewSum(const FewGemm& args, Order* orders)
      : args_(args), orders_(orders), tiles_(__ldcg(args.gemm[0].tile_count)) {
    if (args.gemm[1].tile_count) tiles_ += __ldcg(args.gemm[1].tile_count);
    for (int t = threadIdx.x / 32 - 4; t < args.sum.tokens; t += 8)
      sort_places(args.sum, t, orders + t);
    named_barrier(kBlockBarrier, 256);
  }

  // By the threads of a consumer, after a barrier behind their stores: those of a tile's rows of
  // the outputs from `column` on.
  __device__ __forceinline__ void add_tile(int column) const {
    const int block = column / kSumColumns;
    bool last = false;
    if (threadIdx.x % 128 == 0) {
      __threadfence();
      last = atomicAdd(args_.done + 1 + block, 1u) == static_cast<uint32_t>(tiles_) - 1;
      __threadfence();
    }
    if (named_barrier_any(threadIdx.x / 128, 128, last)) write_outputs(block);
  }

  // By all consumers, when they have no more tiles. The last block ends the forward; were there no
  // tiles at all, the outputs are still to be written.
  __device__ __forceinline__ void end() const {
    if (tiles_ == 0)
      for (int64_t i = blockIdx.x; i * 2 * kSumColumns < args_.sum.hidden; i += gridDim.x)
        write_outputs(static_cast<int>(2 * i + threadIdx.x / 128 - 1));
    const Finish& last = args_.sum.finish;
    if (!last.counters && !last.report && !last.totals) return;
    named_barrier(kBlockBarrier, 256);
    if (threadIdx.x != 128) return;
    __threadfence();
    if (atomicAdd(args_.done, 1u) == gridDim.x - 1) finish(last);
  }

 private:
  __device__ __forceinline__ void write_outputs(int block) const {
    args_.by_8 ? write_block<8>(block) : write_block<1>(block);
  }
  template <int kCount>
  __device__ __forceinline__ void write_block(int block) const {
    constexpr int kPieces = kSumColumns / kCount;
    const CombineArgs& sum = args_.sum;
    const int rows = static_cast<int>(sum.note ? __ldcg(&sum.note->rows) : sum.tokens);
#pragma unroll 1
    for (int i = threadIdx.x % 128; i < rows * kPieces; i += 128) {
      const int token = i / kPieces, column = block * kSumColumns + i % kPieces * kCount;
      if (column < sum.hidden)
        write_sum<kCount>(sum, orders_[token], MemoryRows<kCount, true>{sum}, token, column);
    }
  }

  const FewGemm& args_;
  const Order* orders_;
  int tiles_;
};

}  // namespace moe::cuda::grouped
