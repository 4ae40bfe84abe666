// The weighted sum of permute/combine.h for some columns of a token. The kernels that end a forward
// differ in where they find the experts' rows; how they sum them is written once, here.
#pragma once

#include <type_traits>

#include "permute/order.cuh"
#include "runtime/rows.cuh"

namespace moe::cuda {

template <int kCount>
__device__ __forceinline__ void load_columns(const void* data, DType type, int64_t at,
                                             float (&x)[kCount]) {
  if constexpr (kCount == 8)
    load_8(data, type, at, x);
  else if constexpr (kCount == 2)
    load_2(data, type, at, x);
  else
    x[0] = load_float(data, type, at);
}

template <int kCount>
__device__ __forceinline__ void add_weighted(float (&sum)[kCount], float weight,
                                             const float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] = fmaf(weight, x[i], sum[i]);
}

// bf16 rows in device memory. kFresh: blocks of the same kernel wrote them, so that L1 may not
// know.
template <int kCount, bool kFresh>
struct MemoryRows {
  using Loaded = std::conditional_t<kCount == 8, uint4,
                                    std::conditional_t<kCount == 2, unsigned int, unsigned short>>;
  const CombineArgs& args;

  // A row's columns, under way; each expert's row is read once.
  __device__ Loaded start(int32_t row, int64_t column) const {
    const Loaded* from = at(args.rows, row, column);
    if constexpr (kFresh) return __ldcg(from);
    return __ldcs(from);
  }
  __device__ void finish(const Loaded& loaded, float (&x)[kCount]) const {
    if constexpr (kCount == 8)
      widen_8(loaded, DType::bf16, x);
    else if constexpr (kCount == 2)
      x[0] = __uint_as_float(loaded << 16), x[1] = __uint_as_float(loaded & 0xFFFF0000u);
    else
      x[0] = __uint_as_float(static_cast<uint32_t>(loaded) << 16);
  }
  __device__ void shared(int64_t token, int64_t column, float (&x)[kCount]) const {
    const Loaded* from = at(args.shared, token, column);
    finish(kFresh ? __ldcg(from) : *from, x);
  }

 private:
  __device__ const Loaded* at(const __nv_bfloat16* rows, int64_t row, int64_t column) const {
    return reinterpret_cast<const Loaded*>(rows + row * args.row_stride + column);
  }
};

// A zero expert's row. Rare, and apart, so that the usual way is short.
template <int kCount>
__device__ __noinline__ void load_own_columns(const CombineArgs& args, int64_t token,
                                              int64_t column, float (&x)[kCount]) {
  load_columns(args.from.data, args.from.type, token * args.from.stride + column, x);
}

// Writes kCount columns of a token's output, from `column` on. `rows` is a MemoryRows or alike.
template <int kCount, class ExpertRows>
__device__ __forceinline__ void write_sum(const CombineArgs& args, const Order& order,
                                          const ExpertRows& rows, int64_t token, int64_t column) {
  constexpr int kAhead = 8;
  float sum[kCount] = {}, x[kCount];
  for (int first = 0; first < order.used; first += kAhead) {
    typename ExpertRows::Loaded loaded[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (first + j < order.used && order.row[first + j] >= 0)
        loaded[j] = rows.start(order.row[first + j], column);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (first + j >= order.used) break;
      if (order.row[first + j] < 0)
        load_own_columns(args, token, column, x);
      else
        rows.finish(loaded[j], x);
      add_weighted(sum, order.weight[first + j], x);
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] *= args.routed_scale;
  if (args.shared) {
    rows.shared(token, column, x);
    add_weighted(sum, args.shared_scale * (args.shared_gate ? args.shared_gate[token] : 1.0f), x);
  }
  const int64_t at = token * args.out.stride + column;
  if (args.accumulate) {
    load_columns(args.out.data, args.out.type, at, x);
    add_weighted(sum, 1.0f, x);
  }
  if constexpr (kCount == 8)
    store_8(args.out.data, args.out.type, at, sum);
  else if constexpr (kCount == 2)
    store_2(args.out.data, args.out.type, at, sum);
  else
    store_float(args.out.data, args.out.type, at, sum[0]);
}

// Whether 8 columns at a time can be summed.
inline bool sums_by_8(const CombineArgs& args) {
  return args.hidden % 8 == 0 && aligned_by_8(args.out) && aligned_by_8(args.from);
}

}  // namespace moe::cuda
