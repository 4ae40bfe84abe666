// The kernel of grouped_gemm.h, cut by phase: work list (tile.cuh), producer (produce.cuh),
// multiply (multiply.cuh), epilogue (epilogue.cuh).
#pragma once

#include <algorithm>

#include "gemm/epilogue.cuh"
#include "gemm/multiply.cuh"
#include "gemm/produce.cuh"
#include "runtime/launch.cuh"

namespace moe::cuda {
namespace grouped {

template <typename C, int kN>
__device__ __forceinline__ void multiply(const GroupedGemmArgs& args, const Shared<C>& shared,
                                         const Work& work, Cursor<C::kStages>* cursor, int consumer,
                                         float (&sum)[kN / 2]) {
  if constexpr (kN <= 16)
    multiply_by_warps<C, kN>(args, shared, cursor, consumer, work, sum);
  else if constexpr (C::kScaled)
    multiply_widened<C, kN>(args, shared, cursor, consumer, work, sum);
  else
    multiply_bf16<C, kN>(args, shared, cursor, consumer, sum);
}

template <typename C, int kN>
__device__ __forceinline__ void write(const GroupedGemmArgs& args, const Shared<C>& shared,
                                      const Work& work, int consumer, const float (&sum)[kN / 2]) {
  const int row = work.weight_row + consumer * 64;
  const Activating activating(args.activation, args.alpha, args.limit);
  const float2 bias = bias_of(args, work.slot, row);
  const Packer<C, kN> values{activating, sum, bias.x, bias.y};
  store<C, kN>(args, work, row, consumer, values,
               shared.staging + consumer * C::kChunk * C::kPitch);
}

template <typename C, int kN>
__device__ __forceinline__ void compute(const GroupedGemmArgs& args, const Shared<C>& shared,
                                        const Work& work, Cursor<C::kStages>* cursor,
                                        int consumer) {
  float sum[kN / 2];
  multiply<C, kN>(args, shared, work, cursor, consumer, sum);
  write<C, kN>(args, shared, work, consumer, sum);
}

// Calls the smallest instance that holds work.rows tokens.
template <typename C, int kN, int... kMore>
__device__ __forceinline__ void compute_any(const GroupedGemmArgs& args, const Shared<C>& shared,
                                            const Work& work, Cursor<C::kStages>* cursor,
                                            int consumer) {
  if constexpr (sizeof...(kMore) > 0) {
    if (work.rows > kN) return compute_any<C, kMore...>(args, shared, work, cursor, consumer);
  }
  compute<C, kN>(args, shared, work, cursor, consumer);
}

// Inlined, since a call would make every multiplication wait for the one before.
template <typename C>
__device__ __forceinline__ void consume(const GroupedGemmArgs& args, const Shared<C>& shared) {
  const int consumer = threadIdx.x / 128 - 1;
  wait_for_previous_kernel();
  Cursor<C::kStages> cursor;
  while (true) {
    barrier_wait(shared.full(cursor.stage), cursor.phase);
    const Work work = shared.get(cursor.stage);
    if (work.rows == 0) return;
    if constexpr (C::kTokens == 32)
      // Below 32 columns the products are another instruction's, and other bits.
      args.batch_invariant ? compute<C, 32>(args, shared, work, &cursor, consumer)
                           : compute_any<C, 8, 16, 32>(args, shared, work, &cursor, consumer);
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
      barrier_init(shared.full(i), arrivals<C>(args));
      barrier_init(shared.empty(i), 4 * C::kConsumers * C::kCluster);
    }
    fence_barrier_init();
  }
  if constexpr (C::kCluster > 1)
    cluster_barrier();
  else
    __syncthreads();
  if (threadIdx.x < 128) {
    if constexpr (C::kMoveRegisters) fewer_registers<C::kProducerRegisters>();
    produce<C>(args, shared);
  } else {
    if constexpr (C::kMoveRegisters) more_registers<C::kConsumerRegisters>();
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

template <Operands kOperands, TileClass kSize>
cudaError_t launch_size(const GroupedGemmArgs& args, int64_t max_tiles, int multiprocessors,
                        cudaStream_t stream) {
  const auto run = [&](auto config) {
    return launch_config<decltype(config)>(args, max_tiles, multiprocessors, stream);
  };
  if (args.unary) return run(Config<kOperands, kSize, Output::unary>());
  if (!args.activated) return run(Config<kOperands, kSize, Output::plain>());
  if (args.activation == 0) return run(Config<kOperands, kSize, Output::silu>());
  return run(Config<kOperands, kSize, Output::activated>());
}

}  // namespace grouped
}  // namespace moe::cuda
