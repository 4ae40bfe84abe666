// The output of a consumer's part of a w8a8 tile: each warp turns its 16 tokens into whole rows.
#pragma once

#include "gemm/activation.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/w8a8_tile.cuh"
#include "quant/e4m3.cuh"

namespace moe::cuda::grouped {

template <typename C, int kHalves>
class Epilogue {
 public:
  using Sum = float (&)[kHalves][C::kN / 2];

  __device__ Epilogue(const GroupedGemmArgs& args, const Work& work, const Part& part,
                      const Shared<C>& shared)
      : args_(args),
        work_(work),
        part_(part),
        first_(part.token + threadIdx.x / 32 % 4 * 16),
        largest_(reinterpret_cast<uint32_t*>(shared.staging + C::kOutputBytes)),
        staging_(shared.staging + (threadIdx.x / 32 - 4) * 16 * C::kPitch) {}

  __device__ void add_bias(Sum sum) const {
    if (!args_.bias) return;
    const auto* bias = reinterpret_cast<const float2*>(args_.bias + work_.slot * args_.slot_bytes);
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int i = 0; i < C::kN / 2; i += 4) {
        const int64_t column = first_row(half) + 2 * i + threadIdx.x % 4 * 2;
        const float2 more = column < args_.weight_rows ? __ldg(bias + column / 2) : float2{0, 0};
        float* d = sum[half] + i;
        d[0] += more.x, d[1] += more.y, d[2] += more.x, d[3] += more.y;
      }
  }

  // Plain rows in bf16, 64 columns at a time.
  __device__ void store_plain(Sum sum) const {
    const int lane = threadIdx.x % 32;
    const uint32_t to = shared_address(staging_) + lane % 16 * C::kPitch + lane / 16 * 16;
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int chunk = 0; chunk < C::kN; chunk += 64) {
        const float* d = sum[half] + chunk / 2;
#pragma unroll
        for (int i = 0; i < 32; i += 8)
          store_matrices(to + i * 4, pack(d[i], d[i + 1]), pack(d[i + 2], d[i + 3]),
                         pack(d[i + 4], d[i + 5]), pack(d[i + 6], d[i + 7]));
        write<2, 64>(first_row(half) + chunk);
      }
  }

  // Activated rows in e4m3; the 128 columns of a tile share a scale. Four lanes have a row, of each
  // 16 columns a word of e4m3_column().
  __device__ void store_activated(Sum sum) const {
    uint32_t amax[2] = {0, 0};
    activate(sum, amax);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      amax[i] = max(amax[i], __shfl_xor_sync(~0u, amax[i], 1));
      amax[i] = max(amax[i], __shfl_xor_sync(~0u, amax[i], 2));
    }
    if constexpr (kHalves == 1) share(amax);
    const int lane = threadIdx.x % 32;
    const int64_t column = work_.weight_row / 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const RowScale scale(amax[i]);
      const int token = part_.row() + 8 * i;
      std::byte* to = staging_ + (lane / 4 + 8 * i) * C::kPitch + lane % 4 * 4;
#pragma unroll
      for (int group = 0; group < 4 * kHalves; ++group) {
        const float* d = sum[group / 4] + group % 4 * 16 + 2 * i;
        *reinterpret_cast<uint32_t*>(to + group * 16) =
            scale.word(float2{d[0], d[1]}, float2{d[8], d[9]});
      }
      if (lane % 4 == 0 && part_.half == 0 && token < work_.rows && column < args_.out_columns)
        args_.out_scales[column / kScaleBlock * args_.out_scale_stride + work_.row + token] =
            scale.scale;
    }
    write<1, 64 * kHalves>(column + part_.half * 64);
  }

 private:
  __device__ int64_t first_row(int half) const {  // of the weights
    return work_.weight_row + (part_.half + half) * C::kN;
  }

  // In place: a gate becomes the activated value.
  __device__ void activate(Sum sum, uint32_t (&amax)[2]) const {
    const Activating activating(args_.activation, args_.alpha, args_.limit);
    const auto apply = [&](float gate, float up) {
      if constexpr (C::kOutput == Output::silu) return gate * sigmoid(gate) * up;
      return activating(gate, up);
    };
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int i = 0; i < C::kN / 2; i += 8)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          float* d = sum[half] + i + 2 * row;
          d[0] = apply(d[0], d[4]);
          d[1] = apply(d[1], d[5]);
          amax[row] = max(amax[row], magnitude_bits(float2{d[0], d[1]}));
        }
  }

  // Both consumers have the same tokens, and 64 of the columns each.
  __device__ void share(uint32_t (&amax)[2]) const {
    uint32_t* own = largest_ + part_.row();
    if (threadIdx.x % 4 == 0) own[part_.half * 64] = amax[0], own[part_.half * 64 + 8] = amax[1];
    named_barrier(1, 128 * C::kConsumers);
    for (int i = 0; i < 2; ++i) amax[i] = max(own[8 * i], own[64 + 8 * i]);
    named_barrier(1, 128 * C::kConsumers);
  }

  // kColumns of the warp's rows from staging to `column` of the output: 16 bytes a lane.
  template <int kElementBytes, int kColumns>
  __device__ void write(int64_t column) const {
    constexpr int kLanes = kColumns * kElementBytes / 16;  // of a row
    const int lane = threadIdx.x % 32;
    const int64_t at = column + lane % kLanes * (16 / kElementBytes);
    auto* out = static_cast<std::byte*>(args_.out);
    __syncwarp();
#pragma unroll
    for (int row = lane / kLanes; row < 16; row += 32 / kLanes)
      if (first_ + row < work_.rows && at < args_.out_columns)
        *reinterpret_cast<uint4*>(out + ((work_.row + first_ + row) * args_.out_stride + at) *
                                            kElementBytes) =
            *reinterpret_cast<const uint4*>(staging_ + row * C::kPitch + lane % kLanes * 16);
    __syncwarp();
  }

  const GroupedGemmArgs& args_;
  const Work& work_;
  const Part& part_;
  int first_;           // token of the tile that is the warp's first
  uint32_t* largest_;   // (consumers, 64)
  std::byte* staging_;  // 16 rows of the warp, kPitch apart
};

}  // namespace moe::cuda::grouped
