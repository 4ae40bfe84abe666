// The first phase of grouped_gemm.cuh: four warps fill the ring.
#pragma once

#include "gemm/tile.cuh"

namespace moe::cuda::grouped {

template <typename C>
__device__ void load_weights(const GroupedGemmArgs& args, const Shared<C>& shared, const Work& work,
                             int block, int stage) {
#pragma unroll
  for (int row = 0; row < C::kRows; row += kTileRows)
    stream_box(shared.weights(stage) + row * 128, &args.weights, shared.full(stage),
               block * C::kDepth, work.weight_row + row, work.slot);
}

// One box of a piece of token rows. The blocks of a cluster take turns, each for all of them.
template <typename C>
__device__ void load_tokens(const GroupedGemmArgs& args, const Shared<C>& shared, const Work& work,
                            int block, int stage, int piece, int box) {
  const uint32_t to = shared.tokens(stage, piece) + box * C::kTokenBox * 128;
  const uint32_t full = shared.full(stage);
  const int column = block * C::kDepth + piece * 64, row = work.row + box * C::kTokenBox;
  if constexpr (C::kCluster == 1)
    copy_box(to, &args.rows, full, column, row, 0);
  else if (box % C::kCluster == cluster_rank())
    copy_box_to((1 << C::kCluster) - 1, to, &args.rows, full, column, row, 0);
}

// Scattered token rows, by cp.async: thread t of 128 brings chunk t % 8 of rows t / 8 + 16 i.
template <typename C>
struct Gather {
  static constexpr int kPasses = (C::kTokens + 15) / 16;
  int32_t source[kPasses];
  int passes;

  __device__ void start(const GroupedGemmArgs& args, const Work& work) {
    passes = (work.rows + 15) / 16;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int row = threadIdx.x / 8 + 16 * i;
      source[i] = row < work.rows ? __ldg(args.row_index + work.row + row) : -1;
    }
  }
  // Rows that lie in order.
  __device__ void start(const Work& work) {
    passes = (work.rows + 15) / 16;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int row = threadIdx.x / 8 + 16 * i;
      source[i] = row < work.rows ? work.row + row : -1;
    }
  }
  __device__ void load(const GroupedGemmArgs& args, const Shared<C>& shared, int block, int stage) {
#pragma unroll
    for (int piece = 0; piece < C::kPieces; ++piece)
      load_piece(args, shared.tokens(stage, piece), block * C::kPieces + piece);
  }

 private:
  __device__ void load_piece(const GroupedGemmArgs& args, uint32_t tokens, int piece) {
    const int chunk = threadIdx.x % 8;
    const int64_t column = piece * 128 + chunk * 16;
    const uint32_t size = column < args.depth * 2 ? 16 : 0;
    const std::byte* from = args.row_base + (size ? column : 0);
    // Row + 16: the same swizzle, 2048 bytes on.
    const uint32_t to = tokens + swizzled(threadIdx.x / 8, chunk);
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      if (i >= passes) break;
      if (source[i] >= 0) copy_async_16(to + i * 2048, from + source[i] * args.row_bytes, size);
    }
  }
};

// What arrives at a full barrier: the thread that loads the weights, and who uses cp.async.
template <typename C>
__device__ int arrivals(const GroupedGemmArgs& args) {
  return 1 + (args.row_index ? 128 : 0);
}

// Weights are one box a stage; token rows are boxes too, unless they are gathered. Warp 0 asks for
// the boxes.
template <typename C>
__device__ void produce(const GroupedGemmArgs& args, const Shared<C>& shared) {
  const int thread = threadIdx.x;
  const int blocks = blocks_of<C>(args);
  const bool gathered = C::kGather && args.row_index;

  int early = 0;  // stages whose weights are under way
  if (args.weights_early) {
    WorkList<C> list(args);
    Work work;
    if (list.take(&work))
      for (; early < min(blocks, C::kStages); ++early)
        if (thread == 0) load_weights<C>(args, shared, work, early, early);
  }
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (!gathered && thread >= 32) return;

  WorkList<C> list(args);
  Work work;
  Cursor<C::kStages> cursor;
  [[maybe_unused]] Gather<C> gather;
  while (list.take(&work)) {
    if constexpr (C::kGather)
      if (gathered) gather.start(args, work);
    const int boxes = gathered ? 0 : (work.rows + C::kTokenBox - 1) / C::kTokenBox;
    for (int block = 0; block < blocks; ++block, cursor.next()) {
      barrier_wait(shared.empty(cursor.stage), cursor.phase ^ 1);
      const uint32_t full = shared.full(cursor.stage);
      if (thread == 0) {
        if (block == 0) shared.put(cursor.stage, work);
        barrier_arrive_expect(full, C::kWeightBytes + boxes * C::kPieces * C::kTokenBox * 128);
        if (early == 0) load_weights<C>(args, shared, work, block, cursor.stage);
      }
      if (early > 0) --early;
      if (gathered) {
        if constexpr (C::kGather) gather.load(args, shared, block, cursor.stage);
        barrier_arrive_after_copies(full);
      } else if (thread < boxes * C::kPieces) {
        load_tokens<C>(args, shared, work, block, cursor.stage, thread / boxes, thread % boxes);
      }
    }
  }
  barrier_wait(shared.empty(cursor.stage), cursor.phase ^ 1);
  if (thread == 0) {
    shared.put(cursor.stage, {});
    barrier_arrive(shared.full(cursor.stage));
  }
  if (gathered) barrier_arrive(shared.full(cursor.stage));
}

}  // namespace moe::cuda::grouped
