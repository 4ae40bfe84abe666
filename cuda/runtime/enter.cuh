// The start of a forward, inside its first kernel. Every block needs the table's head and all must
// read the same table: the first block enters the epoch and takes the newest, the others wait for
// it. The hardware starts blocks in the order of their indices, so the first one is running.
//
// All this comes before wait_for_previous_kernel(): the counters and the table belong to no other
// kernel that may still run, since each kernel of a forward waits for the one before it before it
// lets the next one start, and there are several between the first ones of two forwards.
#pragma once

#include "runtime/note.h"
#include "runtime/ptx.cuh"

namespace moe::cuda {

// What a block keeps of the table, in shared memory.
struct Beginning {
  DeviceTable head;
  const DeviceTable* table;
  int64_t rows;  // to compute

  __device__ const int32_t* slots() const { return reinterpret_cast<const int32_t*>(table + 1); }
};

__device__ inline const DeviceTable* newest_table(const BeginArgs& args, bool first) {
  EpochCounters& counters = *args.counters;
  if (!first) {
    uint64_t taken = 0;
    while (taken == 0) taken = load_acquire(&counters.taken);
    return reinterpret_cast<const DeviceTable*>(taken);
  }
  // Between the enter and the read of the cell lies the fence: see store/cuda_store.h.
  volatile uint64_t* entered = &counters.entered;
  *entered = *entered + 1;  // one forward of a context at a time
  __threadfence_system();
  const auto table = *reinterpret_cast<const DeviceTable* const volatile*>(args.cell);
  store_release(&counters.taken, reinterpret_cast<uint64_t>(table));
  return table;
}

// By the first warp of a block; a barrier must follow.
__device__ inline void enter(const BeginArgs& args, bool first, Beginning* s) {
  static_assert(sizeof(DeviceTable) % 8 == 0 && sizeof(DeviceTable) / 8 <= 32);
  if (threadIdx.x == 0) s->table = newest_table(args, first);
  __syncwarp();
  if (threadIdx.x < sizeof(DeviceTable) / 8)
    reinterpret_cast<unsigned long long*>(&s->head)[threadIdx.x] =
        __ldcg(reinterpret_cast<const unsigned long long*>(s->table) + threadIdx.x);
}

// After wait_for_previous_kernel(), by all threads of a block; ends with a barrier. The first block
// writes the note.
__device__ inline void count_rows_and_note(const BeginArgs& args, bool first, Beginning* s) {
  if (threadIdx.x == 0) {
    const int64_t asked = args.valid_rows ? *args.valid_rows : args.tokens;
    s->rows = asked < 0 ? 0 : asked < args.tokens ? asked : args.tokens;
    if (first) {
      ForwardNote note;
      note.table = s->head;
      note.rows = s->rows;
      if (asked != s->rows) note.error = StatusCode::invalid_argument;
      *args.note = note;
    }
  }
  __syncthreads();
}

// The table's lists as later kernels read them; by all threads of one block.
__device__ inline void copy_lists(const BeginArgs& args, const Beginning& s) {
  const float* bias = s.head.block.selection_bias;
  const float* scale = s.head.block.per_expert_scale;
  for (int i = threadIdx.x; i < args.candidates; i += blockDim.x) {
    args.slots[i] = __ldcg(s.slots() + i);
    if (bias) args.selection_bias[i] = __ldcg(bias + i);
    if (scale) args.per_expert_scale[i] = __ldcg(scale + i);
  }
}

// The tiles of the shared expert, which sees every row; by all threads of one block.
__device__ inline void write_shared_tiles(const BeginArgs& args, const Beginning& s) {
  if (!args.shared_tiles) return;
  const int rows = static_cast<int>(s.rows);
  const int count = (rows + args.tile_tokens - 1) / args.tile_tokens;
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    args.shared_tiles[i] = {s.head.shared_slot, 0, count, 0, rows, 0, {0, 0}};
  if (threadIdx.x == 0) *args.shared_tile_count = count;
}

__device__ inline bool is_first_block() { return blockIdx.x == 0 && blockIdx.y == 0; }

// All of the above, for a kernel that others follow; instead of wait_for_previous_kernel().
__device__ inline void begin_forward(const BeginArgs& args, Beginning* s) {
  const bool first = is_first_block();
  if (threadIdx.x < 32) enter(args, first, s);
  __syncthreads();
  wait_for_previous_kernel();
  let_next_kernel_start();
  count_rows_and_note(args, first, s);
  if (!first) return;
  copy_lists(args, *s);
  write_shared_tiles(args, *s);
}

// Says to all threads of a block whether it is the last one of the grid to call this: what the
// others wrote before is visible to it then. Every block calls it once; the next forward may begin.
__device__ inline bool is_last_block(EpochCounters* counters) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(&counters->done, 1u) == gridDim.x * gridDim.y - 1;
    __threadfence();
    if (last) {
      counters->done = 0;
      counters->taken = 0;
    }
  }
  __syncthreads();
  return last;
}

}  // namespace moe::cuda
