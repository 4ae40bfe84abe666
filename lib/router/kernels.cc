#include "router/kernels.h"

#include "quant/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "router/kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;

HWY_INLINE hn::Vec<Floats> load(const float* from) { return hn::LoadU(Floats(), from); }
HWY_INLINE hn::Vec<Floats> load(const hwy::bfloat16_t* from) {
  return hn::PromoteTo(Floats(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, Floats>(), from));
}
HWY_INLINE hn::Vec<Floats> load(const hwy::float16_t* from) {
  return hn::PromoteTo(Floats(), hn::LoadU(hn::Rebind<hwy::float16_t, Floats>(), from));
}

HWY_INLINE float load_one(const float* from) { return *from; }
HWY_INLINE float load_one(const hwy::bfloat16_t* from) { return bf16_to_f32(from->bits); }
HWY_INLINE float load_one(const hwy::float16_t* from) {
  uint16_t bits;
  memcpy(&bits, from, sizeof bits);
  return f16_to_f32(bits);
}

// kRows x kCandidates dot products over `hidden`; each has one accumulator, so that its bits do not
// depend on the size of the tile it is computed in.
template <int kRows, int kCandidates, class Weight>
HWY_INLINE void compute_tile(const LogitsProblem& p, int64_t row, int64_t candidate) {
  const Floats d;
  const int64_t step = static_cast<int64_t>(hn::Lanes(d));
  const float* x[kRows];
  const Weight* w[kCandidates];
  for (int r = 0; r < kRows; ++r) x[r] = p.rows + (row + r) * p.row_stride;
  for (int c = 0; c < kCandidates; ++c)
    w[c] = static_cast<const Weight*>(p.weight) + (candidate + c) * p.weight_stride;

  hn::Vec<Floats> sums[kRows][kCandidates];
  for (auto& row_sums : sums)
    for (auto& sum : row_sums) sum = hn::Zero(d);
  int64_t h = 0;
  for (; h + step <= p.hidden; h += step)
    for (int c = 0; c < kCandidates; ++c) {
      const auto weight = load(w[c] + h);
      for (int r = 0; r < kRows; ++r) sums[r][c] = hn::MulAdd(load(x[r] + h), weight, sums[r][c]);
    }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kCandidates; ++c) {
      float logit = hn::GetLane(hn::SumOfLanes(d, sums[r][c]));
      for (int64_t i = h; i < p.hidden; ++i) logit += x[r][i] * load_one(w[c] + i);
      if (p.bias) logit += p.bias[candidate + c];
      p.logits[(row + r) * p.logits_stride + candidate + c] = logit;
    }
}

template <int kRows, class Weight>
HWY_INLINE void compute_rows(const LogitsProblem& p, int64_t row, int64_t first, int64_t last) {
  int64_t c = first;
  for (; c + 4 <= last; c += 4) compute_tile<kRows, 4, Weight>(p, row, c);
  for (; c < last; ++c) compute_tile<kRows, 1, Weight>(p, row, c);
}

template <class Weight>
HWY_INLINE void compute_block(const LogitsProblem& p, const LogitsBlock& block) {
  int64_t row = block.first_row;
  for (; row + 2 <= block.last_row; row += 2)
    compute_rows<2, Weight>(p, row, block.first, block.last);
  if (row < block.last_row) compute_rows<1, Weight>(p, row, block.first, block.last);
}

void compute_logits(const LogitsProblem& p, const LogitsBlock& block) {
  switch (p.weight_type) {
    case DType::bf16: return compute_block<hwy::bfloat16_t>(p, block);
    case DType::f16: return compute_block<hwy::float16_t>(p, block);
    default: return compute_block<float>(p, block);
  }
}

rule::Outcome select_row(const rule::Rule& rule, const rule::Row& row, float* scratch) {
  return rule::select(rule::ThreadTeam(), rule, row, scratch);
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe {
HWY_EXPORT(compute_logits);
HWY_EXPORT(select_row);

void compute_logits(const LogitsProblem& problem, const LogitsBlock& block) {
  HWY_DYNAMIC_DISPATCH(compute_logits)(problem, block);
}
rule::Outcome select_row(const rule::Rule& rule, const rule::Row& row, float* scratch) {
  return HWY_DYNAMIC_DISPATCH(select_row)(rule, row, scratch);
}
}  // namespace moe
#endif
