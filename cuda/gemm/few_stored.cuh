// How other blocks learn that a block of few_tiles.cu has stored a piece.
#pragma once

#include <cstdint>

#include "runtime/ptx.cuh"

namespace moe::cuda::grouped {

// In shared memory; used in turns.
struct StoredShared {
  uint64_t stored[2], passed_on[2];  // barriers
  uint32_t* counter[2];
};

// The consumers say so, and another warp passes it on: to make stores visible to other blocks takes
// microseconds while weights stream, and would keep the consumers from the next piece.
class Stored {
 public:
  __device__ static void init(StoredShared* shared, int warps) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(&shared->stored[i], warps);
      barrier_init(&shared->passed_on[i], 1);
    }
  }
  __device__ explicit Stored(StoredShared* shared) : shared_(shared) {}

  // By each warp of the consumers, after its stores; null: there is no more.
  __device__ void say(uint32_t* counter) {
    const int i = count_ % 2;
    barrier_wait(&shared_->passed_on[i], phase() ^ 1);
    if (threadIdx.x == 128) shared_->counter[i] = counter;
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&shared_->stored[i]);
    ++count_;
  }

  // By one thread.
  __device__ void pass_on() {
    while (true) {
      const int i = count_ % 2;
      barrier_wait(&shared_->stored[i], phase());
      uint32_t* counter = shared_->counter[i];
      barrier_arrive(&shared_->passed_on[i]);
      if (!counter) return;
      add_release(counter, 1);
      ++count_;
    }
  }

 private:
  __device__ uint32_t phase() const { return count_ / 2 % 2; }

  StoredShared* shared_;
  int count_ = 0;
};

}  // namespace moe::cuda::grouped
