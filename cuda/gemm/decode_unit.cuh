// What a warp of decode.cu makes of one pair of weight rows: its products with two token rows.
//
// The matrix units sum 16 products of 16 left rows and 8 right ones. On the right lie both weight
// rows, each as four quarters of a step (column 2 q + r is quarter q of row r); on the left the
// token rows as quarters (row 4 i + q), so that a quarter of what comes out counts: where the
// quarters are the same. Lane 4 g + t has column t's of row g; it counts where g % 4 = t.
//
// A lane's 16 bytes of a token row are its four left registers as they come: every other one lies
// in rows 8 to 15. One product multiplies the weights of the first kind, and its upper rows count;
// one those of the second, and its lower rows count. What does not count is never added to what
// does.
#pragma once

#include "gemm/decode_stream.cuh"

namespace moe::cuda::decode {

class Unit {
 public:
  // Two token rows; the same twice if there is one.
  __device__ Unit(const std::byte* first, const std::byte* second) {
    const int lane = threadIdx.x % 32;
    row_ = (lane < 16 ? first : second) + lane / 4 % 4 * 64 + lane % 4 * 16;
  }

  __device__ __forceinline__ void multiply(Stream& stream, int row_bytes) {
    for (int left = row_bytes; left > 0; left -= kPartBytes) {
      multiply_part(stream, min(left, kPartBytes));
      row_ += kPartBytes;
    }
  }

  // The products of the first weight row and of the second: with the first token row in lane 0,
  // with the second one in lane 16.
  __device__ float2 products() const {
    return {total(even_[0] + odd_[2]), total(even_[1] + odd_[3])};
  }

 private:
  // The sum of the lanes that count.
  __device__ static float total(float value) {
    value += __shfl_xor_sync(~0u, value, 5);
    return value + __shfl_xor_sync(~0u, value, 10);
  }

  __device__ __forceinline__ void multiply_part(Stream& stream, int bytes) {
    const int lane = threadIdx.x % 32;
    const std::byte* from = stream.wait() + lane / 4 % 2 * kPitch + lane / 8 * 64 + lane % 4 * 16;
    if (bytes == kPartBytes) {
#pragma unroll
      for (int at = 0; at < kPartBytes; at += kStepBytes) add(load(from + at), load(row_ + at));
    } else {
      int at = 0;
#pragma unroll 1
      for (; at + kStepBytes <= bytes; at += kStepBytes) add(load(from + at), load(row_ + at));
      const int end = bytes - at, here = lane % 4 * 16;
      if (end > 0)
        add(lane / 8 * 64 + here < end ? load(from + at) : uint4{0, 0, 0, 0},
            lane / 4 % 4 * 64 + here < end ? load(row_ + at) : uint4{0, 0, 0, 0});
    }
    stream.release();
  }

  __device__ static uint4 load(const std::byte* from) {
    return *reinterpret_cast<const uint4*>(from);
  }

  // One step of both weight rows: 16 bytes a lane.
  __device__ __forceinline__ void add(const uint4& weights, const uint4& x) {
    multiply_bf16(even_, {x.x, x.y, x.z, x.w}, weights.x, weights.z);
    multiply_bf16(odd_, {x.x, x.y, x.z, x.w}, weights.y, weights.w);
  }

  const std::byte* row_;  // the lane's, of the part
  float even_[4] = {}, odd_[4] = {};
};

}  // namespace moe::cuda::decode
