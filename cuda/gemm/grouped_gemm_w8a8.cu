// The w8a8 kernel of grouped_gemm.h: tokens are the M side (w8a8_tile.cuh).
#include <algorithm>

#include "gemm/produce.cuh"
#include "gemm/w8a8_epilogue.cuh"
#include "gemm/w8a8_multiply.cuh"
#include "runtime/launch.cuh"

namespace moe::cuda::grouped {
namespace {

template <typename C>
using ScaledList = TileList<C::kRows, C::kCluster, C::kTokens>;

// One thread asks for the boxes of a stage. The blocks of a cluster take turns at token boxes, each
// for all of them.
template <typename C>
__device__ void load_tokens(const GroupedGemmArgs& args, const Shared<C>& shared, const Work& work,
                            int block, int stage) {
#pragma unroll
  for (int box = 0; box < C::kTokens / C::kTokenBox; ++box) {
    const int row = box * C::kTokenBox;
    if (row >= work.rows) break;
    const uint32_t to = shared.tokens(stage) + row * 128;
    const uint32_t full = shared.full(stage);
    if constexpr (C::kCluster == 1)
      copy_box(to, &args.rows, full, block * C::kDepth, work.row + row, 0);
    else if (box % C::kCluster == cluster_rank())
      copy_box_to((1 << C::kCluster) - 1, to, &args.rows, full, block * C::kDepth, work.row + row,
                  0);
  }
}

template <typename C>
__device__ void produce_boxes(const GroupedGemmArgs& args, const Shared<C>& shared) {
  const int blocks = blocks_of<C>(args);
  int early = 0;  // stages whose weights are under way
  if (args.weights_early) {
    ScaledList<C> list(args);
    Work work;
    if (list.take(&work))
      for (; early < min(blocks, C::kStages); ++early)
        load_weights<C>(args, shared, work, early, early);
  }
  wait_for_previous_kernel();
  let_next_kernel_start();

  ScaledList<C> list(args);
  Work work;
  Cursor<C::kStages> cursor;
  while (list.take(&work)) {
    const int boxes = (work.rows + C::kTokenBox - 1) / C::kTokenBox;
    for (int block = 0; block < blocks; ++block, cursor.next()) {
      const int stage = cursor.stage;
      barrier_wait(shared.empty(stage), cursor.phase ^ 1);
      if (block == 0) shared.put(stage, work);
      barrier_arrive_expect(shared.full(stage), C::kWeightBytes + boxes * C::kTokenBox * 128);
      if (early > 0)
        --early;
      else
        load_weights<C>(args, shared, work, block, stage);
      load_tokens<C>(args, shared, work, block, stage);
    }
  }
  barrier_wait(shared.empty(cursor.stage), cursor.phase ^ 1);
  shared.put(cursor.stage, {});
  barrier_arrive(shared.full(cursor.stage));
}

// A warp brings the scales of a stage.
template <typename C>
__device__ void produce_scales(const GroupedGemmArgs& args, const Shared<C>& shared) {
  const int lane = threadIdx.x % 32, blocks = blocks_of<C>(args);
  const int64_t groups = scale_blocks(C::kActivate ? args.weight_rows / 2 : args.weight_rows);
  wait_for_previous_kernel();
  ScaledList<C> list(args);
  Work work;
  Cursor<C::kStages> cursor;
  while (list.take(&work)) {
    const float* tokens = args.row_scales + work.row + lane;
    // Two scales of weights, by two lanes: gates and ups, or neighbours. Beyond the last: any.
    const int64_t group = work.weight_row / (C::kActivate ? 2 : 1) / kScaleBlock;
    const int64_t own = min(group + (C::kActivate ? 0 : lane % 2), groups - 1) +
                        (C::kActivate && lane % 2 == 1 ? groups : 0);
    const auto* weights =
        reinterpret_cast<const float*>(args.weight_scales + work.slot * args.slot_bytes) +
        own * blocks;
    for (int block = 0; block < blocks; ++block, cursor.next()) {
      barrier_wait(shared.empty(cursor.stage), cursor.phase ^ 1);
      const uint32_t to = scales_of(shared, cursor.stage) + lane * 4;
#pragma unroll
      for (int row = 0; row < C::kTokens; row += 32)
        if (row + lane < work.rows) copy_async_4(to + row * 4, tokens + row, 4);
      if (lane < 2) copy_async_4(to + C::kTokens * 4, weights + block, 4);
      barrier_arrive_after_copies(shared.full(cursor.stage));
      tokens += args.row_scale_stride;
    }
  }
  barrier_wait(shared.empty(cursor.stage), cursor.phase ^ 1);
  barrier_arrive(shared.full(cursor.stage));
}

template <typename C, int kHalves>
__device__ __forceinline__ void compute_part(const GroupedGemmArgs& args, const Shared<C>& shared,
                                             Cursor<C::kStages>* cursor, const Turns& turns,
                                             const Work& work, const Part& part) {
  float sum[kHalves][C::kN / 2];
  multiply_tokens<C, kHalves>(args, shared, cursor, turns, part, sum);
  const Epilogue<C, kHalves> epilogue(args, work, part, shared);
  epilogue.add_bias(sum);
  if constexpr (C::kActivate)
    epilogue.store_activated(sum);
  else
    epilogue.store_plain(sum);
}

template <typename C>
__device__ __forceinline__ void consume_tiles(const GroupedGemmArgs& args,
                                              const Shared<C>& shared) {
  const int consumer = static_cast<int>(keep(threadIdx.x / 128)) - 1;
  wait_for_previous_kernel();
  const Turns turns(consumer);
  Cursor<C::kStages> cursor;
  while (true) {
    barrier_wait(shared.full(cursor.stage), cursor.phase);
    const Work work = shared.get(cursor.stage);
    if (work.rows == 0) return turns.end();
    if (work.rows > 64)
      compute_part<C, 2>(args, shared, &cursor, turns, work, {consumer * 64, 0});
    else
      compute_part<C, 1>(args, shared, &cursor, turns, work, {0, consumer});
  }
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    scaled_gemm(const __grid_constant__ GroupedGemmArgs args) {
  extern __shared__ std::byte raw[];
  const Shared<C> shared(raw);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&args.weights);
    prefetch_tensor_map(&args.rows);
    for (int i = 0; i < C::kStages; ++i) {
      barrier_init(shared.full(i), 1 + 32);
      barrier_init(shared.empty(i), 4 * C::kConsumers * C::kCluster);
    }
    fence_barrier_init();
  }
  if constexpr (C::kCluster > 1)
    cluster_barrier();
  else
    __syncthreads();
  if (threadIdx.x < 128) {
    fewer_registers<40>();
    if (threadIdx.x == 0) produce_boxes<C>(args, shared);
    if (threadIdx.x / 32 == 1) produce_scales<C>(args, shared);
  } else {
    more_registers<232>();
    consume_tiles<C>(args, shared);
  }
  if constexpr (C::kCluster > 1) {  // nobody writes into a block that has ended
    __syncwarp();
    cluster_barrier();
  }
}

template <Output kOutput, int kCluster>
cudaError_t launch_scaled(const GroupedGemmArgs& args, int64_t max_tiles, int multiprocessors,
                          cudaStream_t stream) {
  using C = ScaledConfig<kOutput, kCluster>;
  constexpr int64_t kStep = ScaledList<C>::kStep;
  const int64_t work = max_tiles * ((args.weight_rows + kStep - 1) / kStep);
  const int64_t clusters = std::min<int64_t>(work, multiprocessors / kCluster);
  return launch_clusters(kCluster, scaled_gemm<C>, static_cast<unsigned>(clusters * kCluster),
                         C::kThreads, C::kShared, stream, args);
}

template <int kCluster>
cudaError_t launch_output(const GroupedGemmArgs& args, int64_t max_tiles, int multiprocessors,
                          cudaStream_t stream) {
  const auto launch = !args.activated        ? launch_scaled<Output::plain, kCluster>
                      : args.activation == 0 ? launch_scaled<Output::silu, kCluster>
                                             : launch_scaled<Output::activated, kCluster>;
  return launch(args, max_tiles, multiprocessors, stream);
}

}  // namespace

cudaError_t launch_w8a8(TileClass size, const GroupedGemmArgs& args, int64_t max_tiles,
                        int multiprocessors, cudaStream_t stream) {
  switch (size) {
    case TileClass::medium: return launch_output<1>(args, max_tiles, multiprocessors, stream);
    case TileClass::large: return launch_output<2>(args, max_tiles, multiprocessors, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace moe::cuda::grouped
