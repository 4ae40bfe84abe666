// The kernel of grouped_gemm.h, cut by phase: work list, producer, multiply, epilogue.
#pragma once

#include <algorithm>

#include "gemm/activation.cuh"
#include "gemm/grouped_gemm.h"
#include "gemm/layout.h"
#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"
#include "runtime/wgmma.cuh"

namespace moe::cuda {
namespace grouped {

enum class Output { plain, unary, silu, activated };  // silu: apart, for speed

// Everything that is known when the kernel is compiled. A ring stage is 128 bytes of every row.
template <Element kElementType, TileClass kSize, Output kOutputKind>
struct Config {
  static constexpr Element kElement = kElementType;
  static constexpr bool kFp8 = kElement == Element::e4m3;
  static constexpr Output kOutput = kOutputKind;
  static constexpr bool kActivate = kOutput == Output::silu || kOutput == Output::activated;
  static constexpr bool kGather = gathers(kSize);
  static constexpr int kTokens = tile_tokens(kSize, kFp8);
  static constexpr int kRows = kTileRows;
  static constexpr int kConsumers = kRows / 64;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr bool kMoveRegisters = kTokens > 128;
  static constexpr int kDepth = kFp8 ? 128 : 64;  // elements of a stage
  static constexpr int kTokenBox = token_box(kSize);
  // Blocks that work side by side on neighbouring weight tiles of the same token rows, each of
  // which is read from L2 once for all of them.
  static constexpr int kCluster = kSize == TileClass::large ? 2 : 1;

  static constexpr int kWeightBytes = kRows * 128;
  static constexpr int kTokenBytes = kTokens * 128;
  static constexpr int kScaleBytes = kFp8 ? kTokens * 4 : 0;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;

  // The epilogue turns 64 tokens at a time.
  static constexpr int kColumns = kActivate ? 32 : 64;  // of the output, per consumer
  static constexpr int kPitch = kColumns * 2 + 16;
  static constexpr int kChunk = kTokens < 64 ? kTokens : 64;
  static constexpr int kStagingBytes = kChunk * kPitch;

  static constexpr int kShared = 227 * 1024;
  static constexpr int kStages =
      (kShared - 1024 - 512 - kConsumers * kStagingBytes) / (kStageBytes + kScaleBytes);
  static_assert(kStages >= 3 && kStages <= 24);
};

template <typename C>
struct Shared {
  std::byte* ring;     // kStages of weights then tokens, 1024-byte aligned
  std::byte* staging;  // one per consumer
  float* scales;       // kStages of kTokens
  uint64_t* full;
  uint64_t* empty;

  __device__ explicit Shared(std::byte* raw) {
    ring = raw + (1024 - shared_address(raw) % 1024) % 1024;
    staging = ring + C::kStages * C::kStageBytes;
    scales = reinterpret_cast<float*>(staging + C::kConsumers * C::kStagingBytes);
    full = reinterpret_cast<uint64_t*>(scales + C::kStages * C::kScaleBytes / 4);
    empty = full + C::kStages;
  }
  __device__ uint32_t weights(int stage) const {
    return shared_address(ring + stage * C::kStageBytes);
  }
  __device__ uint32_t tokens(int stage) const { return weights(stage) + C::kWeightBytes; }
};

// A position in the ring: which stage, and the parity of its use.
template <int kStages>
struct Cursor {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

// One output tile.
struct Work {
  int slot;
  int weight_row;  // first of the tile
  int row;         // first permuted row
  int rows;        // of it: 1 ... C::kTokens
};

template <typename C>
struct WorkList {
  static constexpr int kPatch = 8;
  static constexpr int kStep = C::kCluster * C::kRows;  // weight rows of a cluster
  const TokenTile* tiles;
  int weight_tiles;
  int64_t total;
  int64_t at = blockIdx.x / C::kCluster;

  __device__ explicit WorkList(const GroupedGemmArgs& args)
      : tiles(args.tiles),
        weight_tiles((args.weight_rows + kStep - 1) / kStep),
        total(static_cast<int64_t>(__ldcg(args.tile_count)) * weight_tiles) {}

  // Tiles that run together form a near-square patch of one expert: kPatch token tiles by all
  // weight tiles, so that both sides are read from L2. An expert's token tiles have equal sizes,
  // but for the last.
  __device__ bool take(Work* work) {
    if (at >= total) return false;
    const int4* entry = reinterpret_cast<const int4*>(tiles + at / weight_tiles);
    const int4 a = __ldcg(entry);  // slot, first, tiles, row
    const int rows = __ldcg(entry + 1).x;
    const int local = static_cast<int>(at - static_cast<int64_t>(a.y) * weight_tiles);
    const int size = (rows + a.z * 8 - 1) / (a.z * 8) * 8;
    const int patch = local / (kPatch * weight_tiles) * kPatch;
    const int width = min(kPatch, a.z - patch);
    const int inside = local - patch * weight_tiles;
    const int begin = (patch + inside % width) * size;
    const int rank = C::kCluster > 1 ? static_cast<int>(cluster_rank()) : 0;
    *work = {a.x, inside / width * kStep + rank * C::kRows, a.w + begin,
             max(0, min(size, rows - begin))};
    at += gridDim.x / C::kCluster;
    return true;
  }
};

// --- producer -------------------------------------------------------------------------------

template <typename C>
__device__ void load_weights(const GroupedGemmArgs& args, const Shared<C>& shared, const Work& work,
                             int block, int stage) {
  copy_box(shared.weights(stage), &args.weights, &shared.full[stage], block * C::kDepth,
           work.weight_row, work.slot);
}

// One box of token rows. The blocks of a cluster take turns, each for all of them.
template <typename C>
__device__ void load_tokens(const GroupedGemmArgs& args, const Shared<C>& shared, const Work& work,
                            int block, int stage, int box) {
  const uint32_t to = shared.tokens(stage) + box * C::kTokenBox * 128;
  uint64_t* full = &shared.full[stage];
  const int column = block * C::kDepth, row = work.row + box * C::kTokenBox;
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
  __device__ void load(const GroupedGemmArgs& args, const Shared<C>& shared, int block, int stage) {
    const int chunk = threadIdx.x % 8;
    const int64_t column = block * 128 + chunk * 16;
    const uint32_t size = column < args.depth * (C::kFp8 ? 1 : 2) ? 16 : 0;
    const std::byte* from = args.row_base + (size ? column : 0);
    // Row + 16: the same swizzle, 2048 bytes on.
    const uint32_t to = shared.tokens(stage) + swizzled(threadIdx.x / 8, chunk);
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      if (i >= passes) break;
      if (source[i] >= 0) copy_async_16(to + i * 2048, from + source[i] * args.row_bytes, size);
    }
  }
};

// Four warps. Weights are one box a stage; token rows are boxes too, unless they are gathered.
template <typename C>
__device__ void produce(const GroupedGemmArgs& args, const Shared<C>& shared) {
  const int thread = threadIdx.x;
  const int blocks = (args.depth + C::kDepth - 1) / C::kDepth;
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
      barrier_wait(&shared.empty[cursor.stage], cursor.phase ^ 1);
      uint64_t* full = &shared.full[cursor.stage];
      if (thread == 0) {
        barrier_arrive_expect(full, C::kWeightBytes + boxes * C::kTokenBox * 128);
        if (early == 0) load_weights<C>(args, shared, work, block, cursor.stage);
      }
      if (early > 0) --early;
      if (gathered) {
        if constexpr (C::kGather) gather.load(args, shared, block, cursor.stage);
        barrier_arrive_after_copies(full);
      } else if (thread < boxes) {
        load_tokens<C>(args, shared, work, block, cursor.stage, thread);
      }
    }
  }
}

// --- consumers ------------------------------------------------------------------------------

// A warp has read the stage: whoever fills it, in any block of the cluster, may go on.
template <typename C>
__device__ void release(const Shared<C>& shared, int stage) {
  if constexpr (C::kCluster == 1) {
    barrier_arrive(&shared.empty[stage]);
  } else {
    for (uint32_t rank = 0; rank < C::kCluster; ++rank)
      barrier_arrive_remote(&shared.empty[stage], rank);
  }
}

// Multiplies one stage: 64 weight rows by kN tokens.
template <typename C, int kN>
__device__ void multiply_stage(const Shared<C>& shared, int stage, int consumer,
                               float (&sum)[kN / 2], bool add) {
  const uint64_t a = matrix_descriptor(shared.weights(stage) + consumer * 64 * 128);
  const uint64_t b = matrix_descriptor(shared.tokens(stage));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    Wgmma<kN>::template run<C::kElement>(sum, a + 2 * k, b + 2 * k, add || k > 0);
  wgmma_commit();
}

template <typename C, int kN>
__device__ void multiply_bf16(const GroupedGemmArgs& args, const Shared<C>& shared,
                              Cursor<C::kStages>* cursor, int consumer, float (&sum)[kN / 2]) {
  const int blocks = (args.depth + C::kDepth - 1) / C::kDepth;
  const bool leader = threadIdx.x % 32 == 0;
  int previous = -1;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum[i] = 0;
  for (int block = 0; block < blocks; ++block, cursor->next()) {
    barrier_wait(&shared.full[cursor->stage], cursor->phase);
    if (C::kGather && args.row_index) fence_async_proxy();  // cp.async wrote the token rows
    multiply_stage<C, kN>(shared, cursor->stage, consumer, sum, true);
    wgmma_wait<1>();
    if (leader && previous >= 0) release(shared, previous);
    previous = cursor->stage;
  }
  wgmma_wait<0>();
  if (leader) release(shared, previous);
}

// The scales of one weight tile: a scale per 128 inputs for the thread's first and second 8 rows.
template <typename C>
struct WeightScales {
  const float* low;
  const float* high;
  __device__ WeightScales(const GroupedGemmArgs& args, const Work& work, int consumer, int blocks) {
    const float* base =
        reinterpret_cast<const float*>(args.weight_scales + work.slot * args.slot_bytes);
    const int row = work.weight_row + consumer * 64;
    if (C::kActivate) {  // 16 rows hold 8 gates and 8 ups
      low = base + static_cast<int64_t>(row / 2 / 128) * blocks;
      high = low + scale_blocks(args.weight_rows / 2) * blocks;
    } else {
      low = high = base + static_cast<int64_t>(row / 128) * blocks;
    }
  }
};

// Each stage is one scale block: its product is scaled and added outside the matrix units.
template <typename C, int kN>
__device__ void multiply_fp8(const GroupedGemmArgs& args, const Shared<C>& shared,
                             Cursor<C::kStages>* cursor, int consumer, const Work& work,
                             float (&sum)[kN / 2]) {
  const int blocks = (args.depth + C::kDepth - 1) / C::kDepth;
  const int lane = threadIdx.x % 32;
  const WeightScales<C> scales(args, work, consumer, blocks);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum[i] = 0;
  float low = __ldg(scales.low), high = __ldg(scales.high);
  for (int block = 0; block < blocks; ++block, cursor->next()) {
    float part[kN / 2];
    barrier_wait(&shared.full[cursor->stage], cursor->phase);
    if (C::kGather && args.row_index) fence_async_proxy();  // cp.async wrote the token rows
    multiply_stage<C, kN>(shared, cursor->stage, consumer, part, false);
    const int ahead = block + 1 < blocks ? block + 1 : block;
    const float next_low = __ldg(scales.low + ahead), next_high = __ldg(scales.high + ahead);
    const float2* row_scales =
        reinterpret_cast<const float2*>(shared.scales + cursor->stage * C::kTokens) + lane % 4;
    wgmma_wait<0>();
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      const float2 s = row_scales[4 * j];
      sum[4 * j] = fmaf(part[4 * j], low * s.x, sum[4 * j]);
      sum[4 * j + 1] = fmaf(part[4 * j + 1], low * s.y, sum[4 * j + 1]);
      sum[4 * j + 2] = fmaf(part[4 * j + 2], high * s.x, sum[4 * j + 2]);
      sum[4 * j + 3] = fmaf(part[4 * j + 3], high * s.y, sum[4 * j + 3]);
    }
    __syncwarp();
    if (lane == 0) release(shared, cursor->stage);
    low = next_low, high = next_high;
  }
}

__device__ inline uint32_t pack(float a, float b) {
  const __nv_bfloat162 packed = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&packed);
}

// The thread's values of 8 tokens as registers of transposable matrices: one of activated gates, or
// two of plain rows.
template <typename C, int kN>
struct Packer {
  const GroupedGemmArgs& args;
  const float (&sum)[kN / 2];
  float low_bias, high_bias;
  __device__ float apply(float gate, float up) const {
    if constexpr (C::kOutput == Output::silu) return gate * sigmoid(gate) * up;
    return activate(args.activation, args.alpha, args.limit, gate, up);
  }
  __device__ float single(float value) const {
    if constexpr (C::kOutput == Output::unary)
      return activate(args.activation, args.alpha, args.limit, value, 1.0f);
    return value;
  }
  __device__ uint32_t activated(int j) const {
    const float* d = sum + 4 * j;
    return pack(apply(d[0] + low_bias, d[2] + high_bias), apply(d[1] + low_bias, d[3] + high_bias));
  }
  __device__ uint32_t low(int j) const {
    return pack(single(sum[4 * j] + low_bias), single(sum[4 * j + 1] + low_bias));
  }
  __device__ uint32_t high(int j) const {
    return pack(single(sum[4 * j + 2] + high_bias), single(sum[4 * j + 3] + high_bias));
  }
};

// Tokens [first, first + kCount) of the tile into the consumer's staging area, a row each.
template <typename C, int kN, int kFirst, int kCount>
__device__ void stage_chunk(const Packer<C, kN>& values, std::byte* staging) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  constexpr int kJ = kFirst / 8;
  if constexpr (C::kActivate) {
    const uint32_t to = shared_address(staging) + lane * C::kPitch + warp * 16;
    if constexpr (kCount == 8) {
      store_matrix_transposed(to - (lane / 8) * 8 * C::kPitch, values.activated(kJ));
    } else if constexpr (kCount == 16) {
      store_matrix_transposed(to - (lane / 16) * 16 * C::kPitch, values.activated(kJ),
                              values.activated(kJ + 1));
    } else {
#pragma unroll
      for (int j = 0; j < kCount / 8; j += 4)
        store_matrix_transposed(to + j * 8 * C::kPitch, values.activated(kJ + j),
                                values.activated(kJ + j + 1), values.activated(kJ + j + 2),
                                values.activated(kJ + j + 3));
    }
  } else {
    const uint32_t to = shared_address(staging) + (lane / 16 * 8 + lane % 8) * C::kPitch +
                        warp * 32 + (lane / 8 % 2) * 16;
    if constexpr (kCount == 8) {
      store_matrix_transposed(to - (lane / 16 * 8) * C::kPitch, values.low(kJ), values.high(kJ));
    } else {
#pragma unroll
      for (int j = 0; j < kCount / 8; j += 2)
        store_matrix_transposed(to + j * 8 * C::kPitch, values.low(kJ + j), values.high(kJ + j),
                                values.low(kJ + j + 1), values.high(kJ + j + 1));
    }
  }
}

// From staging to the output: 16 bytes a thread, whole rows of the tile by neighbouring threads.
template <typename C, int kCount>
__device__ void write_chunk(const GroupedGemmArgs& args, const Work& work, int consumer, int first,
                            const std::byte* staging) {
  constexpr int kPieces = C::kColumns / 8;
  const int thread = threadIdx.x % 128;
  const int64_t column =
      (work.weight_row + consumer * 64) / (C::kActivate ? 2 : 1) + thread % kPieces * 8;
  if (column >= args.out_columns) return;
#pragma unroll
  for (int token = thread / kPieces; token < kCount; token += 128 / kPieces) {
    if (first + token >= work.rows) break;
    *reinterpret_cast<uint4*>(args.out + (work.row + first + token) * args.out_stride + column) =
        *reinterpret_cast<const uint4*>(staging + token * C::kPitch + thread % kPieces * 16);
  }
}

template <typename C, int kN, int kFirst = 0>
__device__ void store(const GroupedGemmArgs& args, const Work& work, int consumer,
                      const Packer<C, kN>& values, std::byte* staging) {
  constexpr int kCount = kN - kFirst < C::kChunk ? kN - kFirst : C::kChunk;
  if (kFirst >= work.rows) return;
  stage_chunk<C, kN, kFirst, kCount>(values, staging);
  named_barrier(1 + consumer, 128);
  write_chunk<C, kCount>(args, work, consumer, kFirst, staging);
  named_barrier(1 + consumer, 128);
  if constexpr (kFirst + kCount < kN)
    store<C, kN, kFirst + kCount>(args, work, consumer, values, staging);
}

template <typename C, int kN>
__device__ void compute(const GroupedGemmArgs& args, const Shared<C>& shared, const Work& work,
                        Cursor<C::kStages>* cursor, int consumer) {
  float sum[kN / 2];
  if constexpr (C::kFp8)
    multiply_fp8<C, kN>(args, shared, cursor, consumer, work, sum);
  else
    multiply_bf16<C, kN>(args, shared, cursor, consumer, sum);
  Packer<C, kN> values{args, sum, 0, 0};
  if (args.bias) {
    const float* bias = reinterpret_cast<const float*>(args.bias + work.slot * args.slot_bytes);
    const int row =
        work.weight_row + consumer * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    if (row < args.weight_rows) values.low_bias = __ldg(bias + row);
    if (row + 8 < args.weight_rows) values.high_bias = __ldg(bias + row + 8);
  }
  store<C, kN>(args, work, consumer, values, shared.staging + consumer * C::kStagingBytes);
}

// Calls the smallest instance that holds work.rows tokens.
template <typename C, int kN, int... kMore>
__device__ void compute_any(const GroupedGemmArgs& args, const Shared<C>& shared, const Work& work,
                            Cursor<C::kStages>* cursor, int consumer) {
  if constexpr (sizeof...(kMore) > 0) {
    if (work.rows > kN) return compute_any<C, kMore...>(args, shared, work, cursor, consumer);
  }
  compute<C, kN>(args, shared, work, cursor, consumer);
}

template <typename C>
__device__ void consume(const GroupedGemmArgs& args, const Shared<C>& shared) {
  const int consumer = threadIdx.x / 128 - 1;
  wait_for_previous_kernel();
  WorkList<C> list(args);
  Work work;
  Cursor<C::kStages> cursor;
  while (list.take(&work)) {
    if constexpr (C::kTokens == 32)
      compute_any<C, 8, 16, 32>(args, shared, work, &cursor, consumer);
    else if constexpr (C::kTokens == 128)
      compute_any<C, 32, 64, 96, 128>(args, shared, work, &cursor, consumer);
    else
      compute_any<C, 64, 96, 128, 144, 160, 176, 192, 208, 224, 240, 256>(args, shared, work,
                                                                          &cursor, consumer);
  }
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    grouped_gemm(const __grid_constant__ GroupedGemmArgs args) {
  extern __shared__ std::byte raw[];
  const Shared<C> shared(raw);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&args.weights);
    for (int i = 0; i < C::kStages; ++i) {
      barrier_init(&shared.full[i], args.row_index ? 1 + 128 : 1);
      barrier_init(&shared.empty[i], 4 * C::kConsumers * C::kCluster);
    }
    fence_barrier_init();
  }
  if constexpr (C::kCluster > 1)
    cluster_barrier();
  else
    __syncthreads();
  if (threadIdx.x < 128) {
    if constexpr (C::kMoveRegisters) fewer_registers<40>();
    produce<C>(args, shared);
  } else {
    if constexpr (C::kMoveRegisters) more_registers<232>();
    consume<C>(args, shared);
  }
  if constexpr (C::kCluster > 1) {  // nobody writes into a block that has ended
    __syncwarp();
    cluster_barrier();
  }
}

template <typename C>
cudaError_t launch_config(const GroupedGemmArgs& args, int64_t max_tiles, int multiprocessors,
                          cudaStream_t stream) {
  constexpr int64_t kStep = WorkList<C>::kStep;
  const int64_t work = max_tiles * ((args.weight_rows + kStep - 1) / kStep);
  const int64_t clusters = std::min<int64_t>(work, multiprocessors / C::kCluster);
  return launch_clusters(C::kCluster, grouped_gemm<C>,
                         static_cast<unsigned>(clusters * C::kCluster), C::kThreads, C::kShared,
                         stream, args);
}

template <Element kElement, TileClass kSize>
cudaError_t launch_size(const GroupedGemmArgs& args, int64_t max_tiles, int multiprocessors,
                        cudaStream_t stream) {
  const auto run = [&](auto config) {
    return launch_config<decltype(config)>(args, max_tiles, multiprocessors, stream);
  };
  if (args.row_index && !gathers(kSize)) return cudaErrorInvalidValue;
  if (args.unary) return run(Config<kElement, kSize, Output::unary>());
  if (!args.activated) return run(Config<kElement, kSize, Output::plain>());
  if (args.activation == 0) return run(Config<kElement, kSize, Output::silu>());
  return run(Config<kElement, kSize, Output::activated>());
}

inline bool valid(const GroupedGemmArgs& args) {
  return args.depth > 0 && args.weight_rows > 0 && args.out_stride % 8 == 0 &&
         args.out_columns % 8 == 0;
}

}  // namespace grouped
}  // namespace moe::cuda
