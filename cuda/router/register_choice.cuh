// One warp chooses for one row with its keys in registers: the common rules of router/select.h in
// few instructions, with its bits. Compiled only where a * b + c is not contracted.
//
// A key is a float as an unsigned number in the same order, 0 if it cannot be selected. Lane j
// holds the keys of the candidates j, j + 32 and so on, as a team of router/team.h does.
#pragma once

#include "router/topk.h"

namespace moe::cuda {

// How many keys a lane needs for `rule`, rounded up to what is compiled; 0: the rule is not served.
// Groups are served where a group is what the lanes hold in one place.
inline int keys_per_lane(const rule::Rule& r) {
  const bool served = r.selection == Selection::top_k && r.softcap == 0 &&
                      r.scoring != Scoring::sqrt_softplus && r.normalize != Normalize::p_norm &&
                      (r.num_groups == 1 || r.candidates == r.num_groups * rule::kTeamLanes);
  if (!served || r.candidates > 512) return 0;
  return r.candidates <= 128 ? 4 : r.candidates <= 256 ? 8 : 16;
}

inline constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ inline uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x + 0.f);  // -0 as +0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float float_of(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

__device__ inline double sum_over_warp(double value) { return rule::WarpTeam().sum(&value); }

template <int kKeys>
__device__ uint32_t largest_of(const uint32_t (&keys)[kKeys]) {
  uint32_t largest = keys[0];
#pragma unroll
  for (int s = 1; s < kKeys; ++s) largest = max(largest, keys[s]);
  return largest;
}

// f(s, keys[s]) for s = 0, 1, ..., whose result is the new key. Four at a time: as many as hide
// latency, and few instructions.
template <int kKeys, class F>
__device__ void for_each_key(uint32_t (&keys)[kKeys], const F& f) {
  static_assert(kKeys % 4 == 0);
#pragma unroll 1
  for (int first = 0; first < kKeys; first += 4) {
    uint32_t next[4];
#pragma unroll
    for (int s = 0; s < 4; ++s) next[s] = f(first + s, keys[s]);
#pragma unroll
    for (int s = 0; s + 4 < kKeys; ++s) keys[s] = keys[s + 4];
#pragma unroll
    for (int s = 0; s < 4; ++s) keys[kKeys - 4 + s] = next[s];
  }
}

// Keys and logits are the same here. Returns whether a logit was not finite.
template <int kKeys>
__device__ bool load_keys(const rule::Rule& rule, const float* logits, const uint8_t* mask,
                          uint32_t (&keys)[kKeys]) {
  const int lane = threadIdx.x % 32;
  float logit[kKeys];
#pragma unroll
  for (int s = 0; s < kKeys; ++s)
    logit[s] = lane + 32 * s < rule.candidates ? logits[lane + 32 * s] : 0;
  bool nonfinite = false;
#pragma unroll
  for (int s = 0; s < kKeys; ++s) {
    const bool inside = lane + 32 * s < rule.candidates, finite = rule::is_finite(logit[s]);
    nonfinite |= !finite;
    keys[s] = inside && finite ? ordered(logit[s]) : 0;
  }
  if (mask)
#pragma unroll
    for (int s = 0; s < kKeys; ++s)
      if (lane + 32 * s < rule.candidates && !mask[lane + 32 * s]) keys[s] = 0;
  return __any_sync(kWholeWarp, nonfinite);
}

template <int kKeys>
__device__ rule::Softmax softmax_of_keys(uint32_t (&keys)[kKeys]) {
  const double max = float_of(__reduce_max_sync(kWholeWarp, largest_of(keys)));
  double sum = 0;
  for_each_key(keys, [&](int, uint32_t key) {
    const double part = rule::exp(float_of(key) - max);
    sum += key ? part : 0;
    return key;
  });
  return {max, sum_over_warp(sum)};
}

// a / b for 0 <= a <= 1 <= b <= 4096, with the bits of the division if that is at least 2^-900, and
// without its branches: reciprocal by Newton, then one step with the exact rest.
__device__ inline double quotient(double a, double b) {
  double r;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(b));
  double e = fma(-b, r, 1.0);
  e = fma(e, e, e);
  r = fma(r, e, r);
  r = fma(r, fma(-b, r, 1.0), r);
  const double q = a * r;
  return fma(r, fma(-b, q, a), q);
}

// score + more, rounded to float. Below 2^-900 a score counts as nothing there.
__device__ inline float scored_key(const rule::Rule& rule, float logit,
                                   const rule::Softmax& softmax, float more) {
  double score = logit;
  if (rule.scoring == Scoring::sigmoid) {
    const double e = rule::exp(-fabs(static_cast<double>(logit)));
    score = quotient(logit < 0 ? e : 1, 1 + e);
  } else if (rule.scoring == Scoring::softmax) {
    score = quotient(rule::exp(logit - softmax.max), softmax.sum);
  }
  return static_cast<float>(score + more);
}

__device__ inline double score_of(const rule::Rule& rule, float logit,
                                  const rule::Softmax& softmax) {
  if (rule.scoring == Scoring::identity) return logit;
  if (rule.scoring == Scoring::sigmoid) return rule::sigmoid(logit);
  return rule::exp(logit - softmax.max) / softmax.sum;
}

// Of one group, whose keys the lanes hold: rule::group_key.
__device__ inline uint32_t group_key(const rule::Rule& rule, uint32_t key) {
  const uint32_t first = __reduce_max_sync(kWholeWarp, key);
  const int owner = __ffs(__ballot_sync(kWholeWarp, key == first)) - 1;
  const bool owns = static_cast<int>(threadIdx.x % 32) == owner;
  const uint32_t second = __reduce_max_sync(kWholeWarp, owns ? 0 : key);
  if (rule.group_score == GroupScore::max || first == 0) return first;
  return ordered(second ? fmaxf(float_of(first) + float_of(second), -FLT_MAX) : -FLT_MAX);
}

template <int kKeys>
__device__ void limit_groups(const rule::Rule& rule, uint32_t (&keys)[kKeys]) {
  const int lane = threadIdx.x % 32;
  uint32_t mine = 0, kept = 0;
#pragma unroll
  for (int g = 0; g < kKeys; ++g) {
    const uint32_t key = group_key(rule, keys[g]);
    if (lane == g) mine = key;
  }
#pragma unroll 1
  for (int found = 0; found < rule.top_groups; ++found) {
    const uint32_t largest = __reduce_max_sync(kWholeWarp, mine);
    if (largest == 0) break;
    const int group = __ffs(__ballot_sync(kWholeWarp, mine == largest)) - 1;
    kept |= 1u << group;
    if (lane == group) mine = 0;
  }
#pragma unroll
  for (int g = 0; g < kKeys; ++g)
    if (!(kept >> g & 1)) keys[g] = 0;
}

// Gives lane j the index of the j-th largest key; returns how many there were, at most `k`.
template <int kKeys>
__device__ int choose_keys(uint32_t (&keys)[kKeys], int k, int32_t* id) {
  const int lane = threadIdx.x % 32;
  int found = 0;
#pragma unroll 1
  for (; found < k; ++found) {
    const uint32_t largest = __reduce_max_sync(kWholeWarp, largest_of(keys));
    if (largest == 0) break;
    unsigned index = kWholeWarp;
#pragma unroll
    for (int s = kKeys - 1; s >= 0; --s)
      if (keys[s] == largest) index = lane + 32 * s;
    const unsigned winner = __reduce_min_sync(kWholeWarp, index);
    if (lane == found) *id = static_cast<int32_t>(winner);
#pragma unroll
    for (int s = 0; s < kKeys; ++s)
      if (winner == lane + 32u * s) keys[s] = 0;
  }
  return found;
}

// Of the candidate with this logit; lanes that chose none give any.
__device__ inline double weight_of(const rule::Rule& rule, float logit, bool chose,
                                   const rule::Softmax& softmax) {
  double weight;
  if (rule.weighting == Weighting::softmax_of_selected_logits) {
    const double max = float_of(__reduce_max_sync(kWholeWarp, chose ? ordered(logit) : 0));
    weight = rule::exp(logit - max);
    weight /= sum_over_warp(chose ? weight : 0);
  } else if (rule.weighting == Weighting::sigmoid_of_logit) {
    weight = rule::sigmoid(logit);
  } else {
    weight = score_of(rule, logit, softmax);
  }
  if (rule.normalize == Normalize::none) return weight;
  const double sum = sum_over_warp(chose ? weight : 0), epsilon = rule.epsilon;
  double divisor = sum + epsilon;
  if (rule.normalize == Normalize::sum_at_least_epsilon) divisor = sum > epsilon ? sum : epsilon;
  return divisor == 0 ? weight : weight / divisor;
}

// What a lane chose: of the place with its number.
struct Choice {
  int32_t id = -1;
  float weight = 0;
};

template <int kKeys>
__device__ rule::Outcome choose_in_registers(const rule::Rule& rule, const float* logits,
                                             const uint8_t* mask, Choice* choice) {
  uint32_t keys[kKeys];
  rule::Outcome outcome;
  outcome.nonfinite = load_keys(rule, logits, mask, keys);
  const bool scored_keys = !rule::logits_order_as_keys(rule);
  rule::Softmax softmax;
  if (rule.scoring == Scoring::softmax && (scored_keys || rule.weighting == Weighting::score))
    softmax = softmax_of_keys(keys);
  if (scored_keys) {
    const float* bias = rule.selection_bias;
    for_each_key(keys, [&](int s, uint32_t key) -> uint32_t {
      const int i = threadIdx.x % 32 + 32 * s;
      const float more = bias && i < rule.candidates ? bias[i] : 0;
      const float sum = scored_key(rule, key ? float_of(key) : 0, softmax, more);
      return key && rule::is_finite(sum) ? ordered(sum) : 0;
    });
  }
  if (rule.num_groups > 1) limit_groups(rule, keys);
  int32_t id = -1;
  outcome.chosen = choose_keys(keys, rule.top_k, &id);

  const bool chose = static_cast<int>(threadIdx.x % 32) < outcome.chosen;
  double weight = weight_of(rule, chose ? logits[id] : 0, chose, softmax);
  if (chose) {
    if (rule.per_expert_scale) weight *= rule.per_expert_scale[id];
    *choice = {id, static_cast<float>(weight * rule.scaling)};
  }
  return outcome;
}

}  // namespace moe::cuda
