// The kernel of few_tiles.h: phases of grouped_gemm.cuh, on the list of few_work.cuh.
#include <algorithm>

#include "gemm/few_stored.cuh"
#include "gemm/few_sum.cuh"
#include "gemm/few_tiles.h"
#include "gemm/few_work.cuh"
#include "gemm/grouped_gemm.cuh"

namespace moe::cuda {
namespace grouped {

// Gates and ups, and down, in one ring. A stage's note also has the scales of its weights, and a
// third barrier.
template <Operands kOperandTypes, Output kOutputKind>
struct FewConfig : Config<kOperandTypes, TileClass::small, kOutputKind, kFewTileTokens> {
  using Base = Config<kOperandTypes, TileClass::small, kOutputKind, kFewTileTokens>;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr int kStagingBytes =
      Config<kOperandTypes, TileClass::small, Output::plain, kFewTileTokens>::kStagingBytes;
  static constexpr int kOrderBytes = kFewTileTokens * static_cast<int>(sizeof(Order));
  static constexpr int kMostTiles = kMaxFewPairs + 1;
  static constexpr bool kStageScales = Base::kScaled;
  static constexpr int kNoteBytes = Base::kNoteBytes + 16;
  static constexpr int kStages = (Base::kShared - 1024 - kStagingBytes - sizeof(StoredShared) -
                                  kOrderBytes - kMostTiles * 16) /
                                 (Base::kStageBytes + kNoteBytes);
  static_assert(kStages >= 8 && kStages <= 24);
};

namespace {

// Stages of gates and ups: enough for the memory's latency. Were all asked for at once, the first
// would land with the last, and nobody multiply until then.
constexpr int kMostUnderWay = 5;
constexpr int kRowThreads = 64;  // who bring the rows

template <typename C>
struct FewShared : Shared<C> {
  int4* tiles;
  Order* orders;
  StoredShared* stored;

  __device__ explicit FewShared(std::byte* raw) : Shared<C>(raw) {
    std::byte* behind = this->staging + C::kStagingBytes + C::kStages * C::kNoteBytes;
    stored = reinterpret_cast<StoredShared*>(behind);
    tiles = reinterpret_cast<int4*>(stored + 1);
    orders = reinterpret_cast<Order*>(tiles + C::kMostTiles);
  }
  // The stage is free, and says what belongs to it.
  __device__ uint32_t noted(int stage) const { return this->scales(C::kStages) + stage * 8; }

  // A stage's note has room for four numbers.
  __device__ void put(int stage, const FewWork& work) const {
    const int step = static_cast<int>(work.step);
    Shared<C>::put(stage, {work.slot, work.weight_row, work.row,
                           work.rows | work.network << 8 | step << 9 | work.tile << 11});
  }
  __device__ FewWork get(int stage) const {
    const Work work = Shared<C>::get(stage);
    const int more = work.rows;
    return {{work.slot, work.weight_row, work.row, more & 0xFF},
            static_cast<Step>(more >> 9 & 3),
            more >> 8 & 1,
            more >> 11};
  }
};

// ---- what a piece needs, by a warp

// Until `count` pieces are done.
__device__ void wait_for(const uint32_t* done, int count) {
  if (threadIdx.x % 32 == 0)
    while (load_acquire(done) < static_cast<uint32_t>(count)) {
    }
  __syncwarp();
}

__device__ void wait_for_rows(const FewGemm& args, const FewWork& work) {
  if (work.step == Step::down)
    wait_for(args.activated(work), FewGemm::pieces_of(args.gate_up[work.network]));
  if (work.step == Step::sum) wait_for(args.outputs(work), args.tiles(0) + args.tiles(1));
}

// ---- weights and their scales, by one warp, which draws the pieces

template <typename C>
__device__ void bring_weights(const FewGemm& args, const FewShared<C>& shared) {
  const bool leader = threadIdx.x % 32 == 0;
  uint32_t drawn = 0;
  const auto draw = [&] {
    if (leader) drawn = atomicAdd(args.drawn(), 1u);
  };
  draw();
  const FewList list(args, shared.tiles);
  Cursor<C::kStages> cursor, landing;
  int under_way = 0;
  while (true) {
    const FewWork work = list.at(static_cast<int>(__shfl_sync(~0u, drawn, 0)));
    const bool multiplies = work.step == Step::gate_up || work.step == Step::down;
    const GroupedGemmArgs& gemm = args.gemm(work);
    const int stages = multiplies ? blocks_of<C>(gemm) : 1;
    const WeightScales scales(gemm, work.slot, work.weight_row, gemm.activated, stages);
    const float* scale = leader ? scales.low : scales.high;
    for (int block = 0; block < stages; ++block, cursor.next()) {
      barrier_wait(shared.empty(cursor.stage), cursor.phase ^ 1);
      if (++under_way > kMostUnderWay && work.step == Step::gate_up) {
        barrier_wait(shared.full(landing.stage), landing.phase);
        landing.next();
      }
      if (C::kStageScales && threadIdx.x < 2) {
        if (multiplies)
          copy_async_4(shared.scales(cursor.stage) + 4 * threadIdx.x, scale + block, 4);
        barrier_arrive_after_copies(shared.full(cursor.stage));
      }
      if (!leader) continue;
      if (block == 0) shared.put(cursor.stage, work);
      barrier_arrive(shared.noted(cursor.stage));
      if (multiplies) {
        barrier_arrive_expect(shared.full(cursor.stage), C::kWeightBytes);
        load_weights<C>(gemm, shared, work, block, cursor.stage);
      } else {
        barrier_arrive(shared.full(cursor.stage));
      }
    }
    if (work.step == Step::end) return;
    wait_for_rows(args, work);  // others may have less to do until then
    draw();
  }
}

// ---- rows, by kRowThreads threads and cp.async, which sees what other blocks have stored

// Thread t brings chunk t % 8 of rows t / 8 and 8 more.
template <typename C>
class RowCopies {
 public:
  __device__ RowCopies(const GroupedGemmArgs& gemm, const FewWork& work) {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int row = threadIdx.x % kRowThreads / 8 + 8 * i;
      from_[i] = nullptr;
      if (row >= work.rows) continue;
      const bool scattered = work.step == Step::gate_up && gemm.row_index;
      const int64_t at = scattered ? __ldcg(gemm.row_index + work.row + row) : work.row + row;
      from_[i] = gemm.row_base + at * gemm.row_bytes;
    }
  }
  __device__ void load(const GroupedGemmArgs& gemm, uint32_t tokens, int block) const {
    const int chunk = threadIdx.x % 8;
#pragma unroll
    for (int piece = 0; piece < C::kPieces; ++piece) {
      const int64_t column = (block * C::kPieces + piece) * 128 + chunk * 16;
      const uint32_t size = column < gemm.depth * 2 ? 16 : 0;
      const uint32_t to =
          tokens + piece * C::kPieceBytes + swizzled(threadIdx.x % kRowThreads / 8, chunk);
#pragma unroll
      for (int i = 0; i < kPasses; ++i)  // row + 8: the same swizzle, 1024 bytes on
        if (from_[i]) copy_async_16(to + i * 1024, from_[i] + (size ? column : 0), size);
    }
  }

 private:
  static constexpr int kPasses = kFewTileTokens / 8;
  const std::byte* from_[kPasses];
};

template <typename C>
__device__ void bring_rows(const FewGemm& args, const FewShared<C>& shared) {
  Cursor<C::kStages> cursor;
  while (true) {
    barrier_wait(shared.noted(cursor.stage), cursor.phase);
    const FewWork work = shared.get(cursor.stage);
    wait_for_rows(args, work);
    if (work.step == Step::sum || work.step == Step::end) {
      barrier_arrive(shared.full(cursor.stage));
      if (work.step == Step::end) return;
      cursor.next();
      continue;
    }
    const GroupedGemmArgs& gemm = args.gemm(work);
    const RowCopies<C> copies(gemm, work);
    const int blocks = blocks_of<C>(gemm);
    for (int block = 0; block < blocks; ++block, cursor.next()) {
      barrier_wait(shared.noted(cursor.stage), cursor.phase);
      copies.load(gemm, shared.tokens(cursor.stage), block);
      barrier_arrive_after_copies(shared.full(cursor.stage));
    }
  }
}

// ---- consume

// What a routed row is multiplied by before its expert.
__device__ float weight_of(const FewGemm& args, int row) {
  const CombineArgs& sum = args.sum;
  const int first = __ldcg(args.gate_up[0].row_index + row) * sum.top_k;
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

template <class GateUp, class Down, int kN>
__device__ __forceinline__ void compute_few(const FewGemm& args, const FewShared<GateUp>& shared,
                                            const Shared<Down>& as_down, const FewWork& work,
                                            Cursor<GateUp::kStages>* cursor, int consumer) {
  const GroupedGemmArgs& gemm = args.gemm(work);
  float sum[kN / 2];
  multiply<GateUp, kN>(gemm, shared, work, cursor, consumer, sum);
  if (work.step == Step::gate_up) {
    if (args.sum.weights_on_input && work.network == 0) apply_weights<kN>(args, work, sum);
    write<GateUp, kN>(gemm, shared, work, consumer, sum);
  } else {
    write<Down, kN>(gemm, as_down, work, consumer, sum);
  }
}

template <class GateUp, class Down>
__device__ __forceinline__ void consume_few(const FewGemm& args, const FewShared<GateUp>& shared,
                                            const Shared<Down>& as_down) {
  const int consumer = threadIdx.x / 128 - 1;
  const FewSum sum(args, shared.orders);
  Cursor<GateUp::kStages> cursor;
  Stored stored(shared.stored);
  while (true) {
    barrier_wait(shared.full(cursor.stage), cursor.phase);
    const FewWork work = shared.get(cursor.stage);
    if (work.step == Step::end) break;
    if (work.step == Step::sum) {
      if (threadIdx.x % 32 == 0) release(shared, cursor.stage);
      cursor.next();
      sum.write(work.weight_row);
      continue;
    }
    if (work.rows > 8)
      compute_few<GateUp, Down, 16>(args, shared, as_down, work, &cursor, consumer);
    else
      compute_few<GateUp, Down, 8>(args, shared, as_down, work, &cursor, consumer);
    stored.say(args.stored(work));
  }
  stored.say(nullptr);
  sum.end();
}

template <class GateUp, class Down>
__global__ void __launch_bounds__(GateUp::kThreads, 1)
    few_tiles(const __grid_constant__ FewGemm args) {
  static_assert(GateUp::kStages == Down::kStages);
  extern __shared__ std::byte raw[];
  const FewShared<GateUp> shared(raw);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&args.gate_up[0].weights);
    prefetch_tensor_map(&args.down[0].weights);
    for (int i = 0; i < GateUp::kStages; ++i) {
      barrier_init(shared.full(i), 1 + (GateUp::kStageScales ? 2 : 0) + kRowThreads);
      barrier_init(shared.empty(i), 4 * GateUp::kConsumers);
      barrier_init(shared.noted(i), 1);
    }
    Stored::init(shared.stored, 4 * GateUp::kConsumers);
    fence_barrier_init();
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  if (warp < 4) {
    if constexpr (GateUp::kMoveRegisters) fewer_registers<GateUp::kProducerRegisters>();
    wait_for_previous_kernel();
    let_next_kernel_start();
    if (warp == 0) bring_weights(args, shared);
    if (threadIdx.x == 32) Stored(shared.stored).pass_on();
    if (warp >= 2) bring_rows(args, shared);
  } else {
    if constexpr (GateUp::kMoveRegisters) more_registers<GateUp::kConsumerRegisters>();
    wait_for_previous_kernel();
    consume_few<GateUp, Down>(args, shared, FewShared<Down>(raw));
  }
}

// ---- launch

template <Operands kOperands, Output kOutput>
cudaError_t launch_one(const FewGemm& args, int multiprocessors, cudaStream_t stream) {
  using GateUp = FewConfig<kOperands, kOutput>;
  using Down = FewConfig<kOperands, Output::plain>;
  const CombineArgs& sum = args.sum;
  const int64_t tiles = max_tiles(sum.tokens * sum.top_k, sum.num_experts, kFewTileTokens) + 1;
  const int64_t pieces =
      tiles * std::max(FewGemm::pieces_of(args.gate_up[0]), FewGemm::pieces_of(args.down[0]));
  const auto blocks = std::clamp<int64_t>(pieces, 1, multiprocessors);
  return cuda::launch(few_tiles<GateUp, Down>, static_cast<unsigned>(blocks), GateUp::kThreads,
                      GateUp::kShared, stream, args);
}

Output output_of(const GroupedGemmArgs& gate_up) {
  return gate_up.unary ? Output::unary : gate_up.activation == 0 ? Output::silu : Output::activated;
}

template <Operands kOperands>
cudaError_t launch_output(const FewGemm& args, int multiprocessors, cudaStream_t stream) {
  const Output output = output_of(args.gate_up[0]);
  if (output == Output::unary)
    return launch_one<kOperands, Output::unary>(args, multiprocessors, stream);
  if (output == Output::silu)
    return launch_one<kOperands, Output::silu>(args, multiprocessors, stream);
  return launch_one<kOperands, Output::activated>(args, multiprocessors, stream);
}

bool fits(const FewArgs& args, int) {
  const GroupedGemmArgs &routed = args.gate_up[0], &shared = args.gate_up[1];
  const bool alike = !shared.tile_count ||
                     (shared.operands == routed.operands && output_of(shared) == output_of(routed));
  return alike && routed.operands != Operands::w8a8 && args.sum.tokens <= kFewTileTokens &&
         args.sum.top_k <= 32 && args.sum.tokens * args.sum.top_k <= kMaxFewPairs;
}

cudaError_t launch_few(const FewArgs& args, int multiprocessors, cudaStream_t stream) {
  if (!fits(args, multiprocessors)) return cudaErrorInvalidValue;
  const FewGemm all = {{args.gate_up[0], args.gate_up[1]},
                       {args.down[0], args.down[1]},
                       args.sum,
                       args.counters,
                       sums_by_8(args.sum)};
  return args.gate_up[0].operands == Operands::bf16
             ? launch_output<Operands::bf16>(all, multiprocessors, stream)
             : launch_output<Operands::w8a16>(all, multiprocessors, stream);
}

}  // namespace
}  // namespace grouped

const FewKernel kHopperFewTiles = {kFewTileTokens, grouped::fits, grouped::launch_few};

}  // namespace moe::cuda
