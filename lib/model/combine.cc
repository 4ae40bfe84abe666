#include "model/combine.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/rows.h"
#include "quant/half.h"

namespace moe {
namespace {

constexpr int64_t kBlock = 64;  // floats held in registers or L1 while a row is summed
constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kInlineWork = 1 << 15;  // multiplications below which threads cost more

// Places of the row in ascending order of expert; equal experts keep their places' order.
int32_t sort_places(const int32_t* ids, int32_t top_k, int32_t* order) {
  int32_t count = 0;
  for (int32_t place = 0; place < top_k; ++place) {
    if (ids[place] < 0) continue;
    int32_t at = count++;
    for (; at > 0 && ids[order[at - 1]] > ids[place]; --at) order[at] = order[at - 1];
    order[at] = place;
  }
  return count;
}

void add_scaled(float* sum, const float* row, float weight, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += weight * row[i];
}

void combine_row(const CombineArgs& a, int64_t t, int32_t* order) {
  const int64_t hidden = a.hidden.shape[1];
  const int32_t* ids = a.ids + t * a.top_k;
  const int32_t count = sort_places(ids, a.top_k, order);
  float sum[kBlock], x[kBlock];
  for (int64_t h = 0; h < hidden; h += kBlock) {
    const int64_t n = std::min(kBlock, hidden - h);
    std::fill_n(sum, n, 0.0f);
    for (int32_t i = 0; i < count; ++i) {
      const int64_t pair = t * a.top_k + order[i];
      if (ids[order[i]] < a.num_experts) {
        add_scaled(sum, a.rows + pair * hidden + h, a.weights_on_input ? 1.0f : a.weights[pair], n);
      } else {
        load_row(a.hidden.dtype, element(a.hidden, t, h), 1, n, x);
        add_scaled(sum, x, a.weights[pair], n);
      }
    }
    if (a.routed_scale != 1.0f)
      for (int64_t i = 0; i < n; ++i) sum[i] *= a.routed_scale;
    if (a.shared)
      add_scaled(sum, a.shared + t * hidden + h,
                 a.shared_scale * (a.shared_gate ? a.shared_gate[t] : 1.0f), n);
    if (a.accumulate) {
      load_row(a.out.dtype, element(a.out, t, h), 1, n, x);
      for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
    }
    store_row(a.out.dtype, sum, n, element(a.out, t, h), 1);
  }
}

}  // namespace

void combine(const CombineArgs& a) {
  const int64_t tokens = a.hidden.shape[0];
  const int64_t work = tokens * (a.top_k + 1) * a.hidden.shape[1];
  if (!a.executor || work < kInlineWork) {
    for (int64_t t = 0; t < tokens; ++t) combine_row(a, t, a.order.data());
    return;
  }
  const int64_t tasks = (tokens + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(a.executor, tasks, [&](int64_t task, int worker) {
    const int64_t end = std::min(tokens, (task + 1) * kRowsPerTask);
    for (int64_t t = task * kRowsPerTask; t < end; ++t)
      combine_row(a, t, a.order.data() + static_cast<int64_t>(worker) * a.top_k);
  });
}

}  // namespace moe
