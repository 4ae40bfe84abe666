// One warp chooses for one row: with keys in registers where the rule is common, else as
// router/select.h says. Compiled only where a * b + c is not contracted.
#pragma once

#include "router/register_choice.cuh"

namespace moe::cuda {

inline bool valid_topk(const TopKArgs& args) {
  const rule::Rule& r = args.rule;
  return r.candidates >= 1 && r.candidates <= kMaxExperts && r.top_k >= 1 && r.top_k <= kMaxTopK &&
         r.num_groups >= 1 && r.num_groups <= r.candidates &&
         (r.selection != Selection::sparsemixer || r.top_k <= 2);
}

// Floats that one warp works in.
inline int64_t scratch_words(const rule::Rule& rule) {
  return keys_per_lane(rule) > 0
             ? 0
             : rule::scratch_floats(rule.candidates, rule.num_groups) + kMaxTopK;
}

// Most warps, at least one, whose scratch fits in `bytes`.
inline int warps_within(const rule::Rule& rule, size_t bytes, int64_t wanted) {
  const size_t each = static_cast<size_t>(scratch_words(rule)) * sizeof(float);
  const int64_t fit = each == 0 ? wanted : static_cast<int64_t>(bytes / each);
  return static_cast<int>(fit < 1 ? 1 : fit < wanted ? fit : wanted);
}

// The instance of a kernel template for a rule: its first parameter is keys_per_lane().
#define MOE_FOR_KEYS(kernel, rule, ...)                                             \
  (::moe::cuda::keys_per_lane(rule) == 4    ? kernel<4 __VA_OPT__(, ) __VA_ARGS__>  \
   : ::moe::cuda::keys_per_lane(rule) == 8  ? kernel<8 __VA_OPT__(, ) __VA_ARGS__>  \
   : ::moe::cuda::keys_per_lane(rule) == 16 ? kernel<16 __VA_OPT__(, ) __VA_ARGS__> \
                                            : kernel<0 __VA_OPT__(, ) __VA_ARGS__>)

// By select.h, whose lanes write to memory.
__device__ inline rule::Outcome choose_in_memory(rule::Rule rule, const void* const* token_experts,
                                                 rule::Row row, float* scratch, Choice* choice) {
  const rule::WarpTeam team;
  if (token_experts) rule.token_experts = *token_experts;
  row.ids = reinterpret_cast<int32_t*>(scratch);
  const rule::Outcome outcome = rule::select(team, rule, row, scratch + kMaxTopK);
  team.sync();
  const int lane = team.lane(0);
  if (lane < rule.top_k) *choice = {row.ids[lane], row.weights[lane]};
  team.sync();  // the scratch is free for the next row
  return outcome;
}

__device__ inline void add_one(int64_t* count) {
  atomicAdd(reinterpret_cast<unsigned long long*>(count), 1ull);
}

// `scratch`: scratch_words() of this warp's own. Each lane gets the choice of its place.
template <int kKeys>
__device__ Choice select_row(const TopKArgs& args, const rule::Rule& rule, const float* logits,
                             int64_t token, float* scratch) {
  Choice choice;
  const uint8_t* mask = args.mask ? args.mask + token * rule.candidates : nullptr;
  rule::Outcome outcome;
  if constexpr (kKeys > 0)
    outcome = choose_in_registers<kKeys>(rule, logits, mask, &choice);
  else
    outcome = choose_in_memory(rule, args.token_experts,
                               {logits, mask, args.token_ids ? args.token_ids[token] : 0, nullptr,
                                args.weights + token * rule.top_k},
                               scratch, &choice);
  if (threadIdx.x % 32 == 0 && args.counts) {
    if (outcome.nonfinite) add_one(&args.counts->nonfinite_rows);
    if (outcome.chosen < rule.top_k) add_one(&args.counts->short_rows);
  }
  return choice;
}

__device__ inline void write_choice(const TopKArgs& args, int64_t token, const Choice& choice) {
  const int lane = threadIdx.x % 32, top_k = args.rule.top_k;
  if (lane >= top_k) return;
  args.ids[token * top_k + lane] = choice.id;
  args.weights[token * top_k + lane] = choice.weight;
}

}  // namespace moe::cuda
