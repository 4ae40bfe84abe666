// How a warp of decode.cu goes through its pairs of weight rows: a ring of parts that the copy
// engine fills in the order in which they are multiplied.
#pragma once

#include "gemm/grouped_gemm.h"
#include "gemm/layout.h"
#include "runtime/ptx.cuh"

namespace moe::cuda::decode {

constexpr int kWarps = 16, kThreads = kWarps * 32, kStages = 3;
constexpr int kPartBytes = 1024;         // of a weight row
constexpr int kStepBytes = 256;          // of it, by a warp at once
constexpr int kPitch = kPartBytes + 64;  // so that the two rows lie in different banks
constexpr int kStageBytes = 2 * kPartBytes + 128;
constexpr int kRingBytes = kWarps * kStages * (kStageBytes + 8);

// Rows of an expert that are multiplied together.
struct alignas(32) Tile {
  const std::byte* weights;  // the matrix
  int32_t row_bytes;         // of it
  int32_t interleaved;       // gates and ups
  int32_t slot;
  int32_t row;  // first
  int32_t rows;
  int32_t network;  // 0: of the routed experts; 1: of the shared one
};

// Of every tile a block works on these pairs of weight rows.
struct Range {
  int first = 0;
  int last[2] = {};
  __device__ int end(const Tile& tile) const { return tile.network ? last[1] : last[0]; }
};

// Where a warp is in its block's pairs, tile after tile.
struct Place {
  int tile = 0, pair = 0;
  int left = 0;  // pairs from here on; at most 0: none

  __device__ void advance(const Tile* tiles, const Range& range, int by) {
    left -= by;
    pair += by;
    if (left <= 0) return;
    for (int end = range.end(tiles[tile]); pair >= end; end = range.end(tiles[tile])) {
      pair -= end - range.first;
      ++tile;
    }
  }
};

// The two weight rows of a pair: a gate and its up, or neighbours (`last` twice if it has none).
__device__ inline int2 rows_of_pair(bool interleaved, int last, int pair) {
  if (interleaved) {
    const int gate = static_cast<int>(gate_row(pair));
    return {gate, gate + static_cast<int>(kInterleave)};
  }
  return {2 * pair, min(2 * pair + 1, last)};
}
__host__ __device__ inline int pairs_of(const GroupedGemmArgs& gemm) {
  return static_cast<int>((gemm.weight_rows + 1) / 2);
}

class Stream {
 public:
  // `raw`: kRingBytes of shared memory of the block. A barrier must follow.
  __device__ Stream(std::byte* raw)
      : ring_(raw + threadIdx.x / 32 * kStages * kStageBytes),
        barriers_(shared_address(raw + kWarps * kStages * kStageBytes) +
                  threadIdx.x / 32 * kStages * 8) {
    if (threadIdx.x % 32 != 0) return;
    for (int i = 0; i < kStages; ++i) barrier_init(barriers_ + i * 8, 1);
    fence_barrier_init();
  }

  // From `first` on every kWarps-th pair; `last`: row of a matrix that is not interleaved.
  __device__ void start(const Tile* tiles, const Range& range, int last, const Place& first) {
    tiles_ = tiles, range_ = range, last_ = last, ahead_ = first;
    if (ahead_.left > 0) locate();
    for (int i = 0; i < kStages; ++i) {
      fill();
      next();
    }
    phase_ = 0;
  }

  // The next part, once it is there: one row, and the other kPitch after it.
  __device__ const std::byte* wait() const {
    barrier_wait(barriers_ + stage_ * 8, phase_);
    return ring_ + stage_ * kStageBytes;
  }
  // It has been read.
  __device__ void release() {
    __syncwarp();
    fill();
    next();
  }

 private:
  __device__ void next() {
    if (++stage_ == kStages) stage_ = 0, phase_ ^= 1;
  }
  __device__ void locate() {
    const Tile& tile = tiles_[ahead_.tile];
    const int2 rows = rows_of_pair(tile.interleaved, last_, ahead_.pair);
    left_ = tile.row_bytes;
    low_ = tile.weights + static_cast<int64_t>(rows.x) * left_;
    high_ = tile.weights + static_cast<int64_t>(rows.y) * left_;
  }
  __device__ void fill() {
    if (ahead_.left <= 0) return;
    const int bytes = min(left_, kPartBytes);
    if (threadIdx.x % 32 == 0) {
      const uint32_t to = shared_address(ring_ + stage_ * kStageBytes);
      const uint32_t barrier = barriers_ + stage_ * 8;
      barrier_arrive_expect(barrier, 2 * bytes);
      stream_bytes(to, low_, bytes, barrier);
      stream_bytes(to + kPitch, high_, bytes, barrier);
    }
    low_ += bytes;
    high_ += bytes;
    left_ -= bytes;
    if (left_ > 0) return;
    ahead_.advance(tiles_, range_, kWarps);
    if (ahead_.left > 0) locate();
  }

  std::byte* ring_;
  uint32_t barriers_;
  const Tile* tiles_ = nullptr;
  Range range_;
  int last_ = 0;
  Place ahead_;  // the pair of which parts are asked for
  const std::byte *low_ = nullptr, *high_ = nullptr;
  int left_ = 0;  // bytes of each
  int stage_ = 0;
  uint32_t phase_ = 0;
};

}  // namespace moe::cuda::decode
