#include "runtime/finish.cuh"
#include "runtime/launch.cuh"
#include "runtime/note.h"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 512;

// What all threads need of the note.
struct Head {
  const DeviceTable* table;
  const float* selection_bias;
  const float* per_expert_scale;
  int64_t rows;
  int32_t shared_slot;
};

// Between the enter and the read of the cell lies the fence: see store/cuda_store.h.
__device__ const DeviceTable* enter(const BeginArgs& args) {
  volatile uint64_t* entered = &args.counters->entered;
  *entered = *entered + 1;  // one forward of a context at a time
  __threadfence_system();
  return *reinterpret_cast<const DeviceTable* const volatile*>(args.cell);
}

__device__ Head write_note(const BeginArgs& args) {
  const DeviceTable* table = enter(args);
  ForwardNote note;
  const auto* words = reinterpret_cast<const unsigned long long*>(table);
  for (size_t i = 0; i < sizeof(DeviceTable) / 8; ++i)
    reinterpret_cast<unsigned long long*>(&note.table)[i] = __ldcg(words + i);
  note.rows = args.tokens;
  if (args.valid_rows) {
    const int64_t valid = *args.valid_rows;
    note.rows = valid < 0 ? 0 : valid < args.tokens ? valid : args.tokens;
    if (valid != note.rows) note.error = StatusCode::invalid_argument;
  }
  *args.note = note;
  return {table, note.table.block.selection_bias, note.table.block.per_expert_scale, note.rows,
          note.table.shared_slot};
}

__global__ void __launch_bounds__(kThreads) begin(const BeginArgs args) {
  __shared__ Head head;
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (threadIdx.x == 0) head = write_note(args);
  __syncthreads();
  const int32_t* slots = reinterpret_cast<const int32_t*>(head.table + 1);
  const float* bias = head.selection_bias;
  const float* scale = head.per_expert_scale;
  for (int i = threadIdx.x; i < args.candidates; i += kThreads) {
    args.slots[i] = __ldcg(slots + i);
    if (bias) args.selection_bias[i] = __ldcg(bias + i);
    if (scale) args.per_expert_scale[i] = __ldcg(scale + i);
  }
  if (!args.shared_tiles) return;
  const int count = static_cast<int>((head.rows + args.tile_tokens - 1) / args.tile_tokens);
  for (int i = threadIdx.x; i < count; i += kThreads)
    args.shared_tiles[i] = {
        head.shared_slot, 0, count, 0, static_cast<int32_t>(head.rows), 0, {0, 0}};
  if (threadIdx.x == 0) *args.shared_tile_count = count;
}

__global__ void leave(EpochCounters* counters) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  finish({counters, nullptr, nullptr});
}

}  // namespace

cudaError_t launch_begin(const BeginArgs& args, cudaStream_t stream) {
  return launch(begin, 1, kThreads, 0, stream, args);
}

cudaError_t launch_leave(EpochCounters* counters, cudaStream_t stream) {
  return launch(leave, 1, 1, 0, stream, counters);
}

}  // namespace moe::cuda
