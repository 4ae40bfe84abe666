// The last step of few_tiles.cu: the weighted sum of 128 outputs of all tokens, and the end of the
// forward.
#pragma once

#include "gemm/few_work.cuh"
#include "permute/weighted_sum.cuh"
#include "runtime/finish.cuh"
#include "runtime/ptx.cuh"

namespace moe::cuda::grouped {

inline constexpr int kConsumersBarrier = 3;  // of both; 1 and 2: of each

// By the 256 threads of the consumers.
class FewSum {
 public:
  // `orders`: of each token, in shared memory.
  __device__ FewSum(const FewGemm& args, Order* orders) : args_(args), orders_(orders) {
    for (int t = threadIdx.x / 32 - 4; t < args.sum.tokens; t += 8)
      sort_places(args.sum, t, orders + t);
    named_barrier(kConsumersBarrier, 256);
  }

  // Once all rows of these outputs are there.
  __device__ __forceinline__ void write(int first) const {
    if (!args_.by_8) return write_outputs<1>(first);
    // Fewer at a time is fewer instructions, which are not at hand the first time.
    args_.sum.tokens > 4 ? write_outputs<8>(first) : write_outputs<2>(first);
  }

  // When there is no more work for the block. The last one ends the forward.
  __device__ __forceinline__ void end() const {
    const Finish& last = args_.sum.finish;
    if (!last.counters && !last.report && !last.totals) return;
    named_barrier(kConsumersBarrier, 256);
    if (threadIdx.x != 128) return;
    __threadfence();
    if (atomicAdd(args_.blocks_done(), 1u) == gridDim.x - 1) finish(last);
  }

 private:
  template <int kCount>
  __device__ __forceinline__ void write_outputs(int first) const {
    constexpr int kPieces = kTileRows / kCount;
    const CombineArgs& sum = args_.sum;
    const int rows = static_cast<int>(sum.note ? __ldcg(&sum.note->rows) : sum.tokens);
#pragma unroll 1
    for (int i = threadIdx.x - 128; i < rows * kPieces; i += 256) {
      const int token = i / kPieces, column = first + i % kPieces * kCount;
      if (column < sum.hidden)
        write_sum<kCount>(sum, orders_[token], MemoryRows<kCount, true>{sum}, token, column);
    }
  }

  const FewGemm& args_;
  const Order* orders_;
};

}  // namespace moe::cuda::grouped
