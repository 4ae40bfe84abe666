// The kernels of few_tiles.h: those of grouped_gemm.cuh, phase by phase, but that tiles are of two
// networks.
#include <algorithm>

#include "gemm/few_sum.cuh"
#include "gemm/few_tiles.h"
#include "gemm/grouped_gemm.cuh"

namespace moe::cuda {
namespace grouped {

template <Operands kOperandTypes, Output kOutputKind>
struct FewConfig : Config<kOperandTypes, TileClass::small, kOutputKind, kFewTileTokens> {
  using Base = Config<kOperandTypes, TileClass::small, kOutputKind, kFewTileTokens>;
  static constexpr bool kDown = kOutputKind == Output::plain;
  static constexpr int kProducerRegisters = kDown ? 40 : 88;
  static constexpr int kConsumerRegisters = kDown ? 232 : 208;
  static constexpr int kOrderBytes = kDown ? kFewTileTokens * static_cast<int>(sizeof(Order)) : 0;
  static constexpr int kStages = (Base::kShared - 1024 - Base::kStagingBytes - kOrderBytes) /
                                 (Base::kStageBytes + Base::kNoteBytes);
  static_assert(kStages >= 8 && kStages <= 24);

  // Both networks' rows lie by token before gate and up, and in order before down.
  __device__ static bool gathers_rows(const GroupedGemmArgs&) { return !kDown; }
};

namespace {

struct FewWork : Work {
  int network = 0;  // 1: the shared expert
};

// The routed experts' tiles, then the shared one's.
template <typename C>
class FewList {
 public:
  __device__ explicit FewList(const FewGemm& args) : args_(args), list_(args.gemm[0]) {}
  __device__ bool take(FewWork* work) {
    if (!list_.take(work)) {
      if (network_ == 1 || !args_.gemm[1].tile_count) return false;
      const int64_t at = list_.at - list_.total;
      list_ = WorkList<C>(args_.gemm[1]);
      list_.at = at;
      network_ = 1;
      if (!list_.take(work)) return false;
    }
    work->network = network_;
    return true;
  }

 private:
  const FewGemm& args_;
  WorkList<C> list_;
  int network_ = 0;
};

template <typename C>
__device__ Order* orders_of(const Shared<C>& shared) {
  return reinterpret_cast<Order*>(shared.staging + C::kStagingBytes + C::kStages * C::kNoteBytes);
}

// A stage's note has room for four numbers; a tile has few rows.
template <typename C>
__device__ void put(const Shared<C>& shared, int stage, const FewWork& work) {
  shared.put(stage, {work.slot, work.weight_row, work.row, work.rows | work.network << 16});
}
template <typename C>
__device__ FewWork get(const Shared<C>& shared, int stage) {
  FewWork work{shared.get(stage)};
  work.network = work.rows >> 16;
  work.rows &= 0xFFFF;
  return work;
}

// ---- produce

// Down's weights were ready before gate and up: those of the first tile. How many stages.
template <typename C>
__device__ int load_early(const FewGemm& args, const Shared<C>& shared) {
  FewList<C> list(args);
  FewWork work;
  if (!list.take(&work)) return 0;
  const GroupedGemmArgs& gemm = args.gemm[work.network];
  const int early = min(blocks_of<C>(gemm), C::kStages);
  if (threadIdx.x == 0)
    for (int stage = 0; stage < early; ++stage) load_weights<C>(gemm, shared, work, stage, stage);
  return early;
}

template <typename C>
__device__ void produce_few(const FewGemm& args, const Shared<C>& shared) {
  const int thread = threadIdx.x;
  int early = C::kDown ? load_early<C>(args, shared) : 0;
  wait_for_previous_kernel();
  let_next_kernel_start();
  if constexpr (C::kDown) {
    if (thread >= 32) return;
  } else if (blockIdx.x == 0) {
    for (int i = thread; i < few_counters(args.sum.hidden); i += 128) args.done[i] = 0;
  }

  FewList<C> list(args);
  FewWork work;
  Cursor<C::kStages> cursor;
  [[maybe_unused]] Gather<C> gather;
  while (list.take(&work)) {
    const GroupedGemmArgs& gemm = args.gemm[work.network];
    if constexpr (!C::kDown) gemm.row_index ? gather.start(gemm, work) : gather.start(work);
    const int boxes = C::kDown ? (work.rows + C::kTokenBox - 1) / C::kTokenBox : 0;
    const int blocks = blocks_of<C>(gemm);
    for (int block = 0; block < blocks; ++block, cursor.next()) {
      barrier_wait(shared.empty(cursor.stage), cursor.phase ^ 1);
      const uint32_t full = shared.full(cursor.stage);
      if (thread == 0) {
        if (block == 0) put(shared, cursor.stage, work);
        barrier_arrive_expect(full, C::kWeightBytes + boxes * C::kPieces * C::kTokenBox * 128);
        if (early == 0) load_weights<C>(gemm, shared, work, block, cursor.stage);
      }
      if (early > 0) --early;
      if constexpr (!C::kDown) {
        gather.load(gemm, shared, block, cursor.stage);
        barrier_arrive_after_copies(full);
      } else if (thread < boxes * C::kPieces) {
        load_tokens<C>(gemm, shared, work, block, cursor.stage, thread / boxes, thread % boxes);
      }
    }
  }
  barrier_wait(shared.empty(cursor.stage), cursor.phase ^ 1);
  if (thread == 0) {
    put(shared, cursor.stage, {});
    barrier_arrive(shared.full(cursor.stage));
  }
  if (!C::kDown) barrier_arrive(shared.full(cursor.stage));
}

// ---- consume

// What a routed row is multiplied by before its expert.
__device__ float weight_of(const FewGemm& args, int row) {
  const CombineArgs& sum = args.sum;
  const int first = __ldcg(args.gemm[0].row_index + row) * sum.top_k;
  for (int place = 0; place < sum.top_k; ++place)
    if (__ldcg(sum.row_of_pair + first + place) == row) return __ldcg(sum.weights + first + place);
  return 1;
}

// Products with rows that carry their weights; of a tile's tokens a thread has two of 8.
template <int kN>
__device__ __forceinline__ void apply_weights(const FewGemm& args, const Work& work,
                                              float (&sum)[kN / 2]) {
#pragma unroll
  for (int j = 0; j < kN / 8; ++j)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = 8 * j + threadIdx.x % 4 * 2 + i;
      const float weight = token < work.rows ? weight_of(args, work.row + token) : 1.0f;
      sum[4 * j + i] *= weight;
      sum[4 * j + i + 2] *= weight;
    }
}

template <typename C, int kN>
__device__ __forceinline__ void compute_few(const FewGemm& args, const Shared<C>& shared,
                                            const FewWork& work, Cursor<C::kStages>* cursor,
                                            int consumer) {
  const GroupedGemmArgs& gemm = args.gemm[work.network];
  float sum[kN / 2];
  multiply<C, kN>(gemm, shared, work, cursor, consumer, sum);
  if (!C::kDown && args.sum.weights_on_input && work.network == 0)
    apply_weights<kN>(args, work, sum);
  write<C, kN>(gemm, shared, work, consumer, sum);
}

// Calls f(work) for every tile, computed and stored.
template <typename C, class F>
__device__ __forceinline__ void for_each_tile(const FewGemm& args, const Shared<C>& shared,
                                              int consumer, const F& f) {
  Cursor<C::kStages> cursor;
  while (true) {
    barrier_wait(shared.full(cursor.stage), cursor.phase);
    const FewWork work = get(shared, cursor.stage);
    if (work.rows == 0) return;
    if (work.rows > 8)
      compute_few<C, 16>(args, shared, work, &cursor, consumer);
    else
      compute_few<C, 8>(args, shared, work, &cursor, consumer);
    f(work);
  }
}

template <typename C>
__device__ __forceinline__ void consume_few(const FewGemm& args, const Shared<C>& shared) {
  const int consumer = threadIdx.x / 128 - 1;
  if constexpr (C::kDown) {
    const FewSum sum(args, orders_of(shared));
    wait_for_previous_kernel();
    for_each_tile<C>(args, shared, consumer, [&](const FewWork& work) {
      sum.add_tile(work.weight_row + consumer * kSumColumns);
    });
    sum.end();
  } else {
    wait_for_previous_kernel();
    for_each_tile<C>(args, shared, consumer, [](const FewWork&) {});
  }
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1) few_tiles(const __grid_constant__ FewGemm args) {
  extern __shared__ std::byte raw[];
  const Shared<C> shared(raw);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&args.gemm[0].weights);
    for (int i = 0; i < C::kStages; ++i) {
      barrier_init(shared.full(i), C::kDown ? 1 : 1 + 128);
      barrier_init(shared.empty(i), 4 * C::kConsumers);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    if constexpr (C::kMoveRegisters) fewer_registers<C::kProducerRegisters>();
    produce_few<C>(args, shared);
  } else {
    if constexpr (C::kMoveRegisters) more_registers<C::kConsumerRegisters>();
    consume_few<C>(args, shared);
  }
}

// ---- launches

int64_t weight_tiles(const GroupedGemmArgs& gemm) {
  return gemm.tile_count ? (gemm.weight_rows + kTileRows - 1) / kTileRows : 0;
}

template <typename C>
cudaError_t launch_one(const FewGemm& args, int multiprocessors, cudaStream_t stream) {
  const CombineArgs& sum = args.sum;
  const int64_t pairs = sum.tokens * sum.top_k;
  const int64_t work =
      max_tiles(pairs, sum.num_experts, kFewTileTokens) * weight_tiles(args.gemm[0]) +
      max_tiles(sum.tokens, 1, kFewTileTokens) * weight_tiles(args.gemm[1]);
  const auto blocks = std::clamp<int64_t>(work, 1, multiprocessors);
  return cuda::launch(few_tiles<C>, static_cast<unsigned>(blocks), C::kThreads, C::kShared, stream,
                      args);
}

Output output_of(const GroupedGemmArgs& gate_up) {
  return gate_up.unary ? Output::unary : gate_up.activation == 0 ? Output::silu : Output::activated;
}

template <Operands kOperands>
cudaError_t launch_pair(const FewArgs& args, int multiprocessors, cudaStream_t stream) {
  const bool by_8 = sums_by_8(args.sum);
  const FewGemm gate_up{{args.gate_up[0], args.gate_up[1]}, args.sum, args.done, by_8};
  const FewGemm down{{args.down[0], args.down[1]}, args.sum, args.done, by_8};
  const auto run = [&](auto config) {
    return launch_one<decltype(config)>(gate_up, multiprocessors, stream);
  };
  const Output output = output_of(args.gate_up[0]);
  const cudaError_t error = output == Output::unary ? run(FewConfig<kOperands, Output::unary>())
                            : output == Output::silu
                                ? run(FewConfig<kOperands, Output::silu>())
                                : run(FewConfig<kOperands, Output::activated>());
  if (error != cudaSuccess) return error;
  return launch_one<FewConfig<kOperands, Output::plain>>(down, multiprocessors, stream);
}

bool fits(const FewArgs& args, int) {
  const GroupedGemmArgs &routed = args.gate_up[0], &shared = args.gate_up[1];
  const bool alike = !shared.tile_count ||
                     (shared.operands == routed.operands && output_of(shared) == output_of(routed));
  return alike && routed.operands != Operands::w8a8 && args.sum.tokens <= kFewTileTokens &&
         args.sum.top_k <= 32;
}

cudaError_t launch_few(const FewArgs& args, int multiprocessors, cudaStream_t stream) {
  if (!fits(args, multiprocessors)) return cudaErrorInvalidValue;
  return args.gate_up[0].operands == Operands::bf16
             ? launch_pair<Operands::bf16>(args, multiprocessors, stream)
             : launch_pair<Operands::w8a16>(args, multiprocessors, stream);
}

}  // namespace
}  // namespace grouped

const FewKernel kHopperFewTiles = {kFewTileTokens, true, grouped::fits, grouped::launch_few};

}  // namespace moe::cuda
