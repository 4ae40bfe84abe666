#include "router/permute.h"

#include <algorithm>
#include <utility>

namespace moe {
namespace {

bool in_range(int32_t id, int32_t num_experts) { return id >= 0 && id < num_experts; }

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

int64_t group_pairs(const int32_t* ids, int64_t pairs, int32_t num_experts, int64_t* first,
                    int64_t* order) noexcept {
  std::fill_n(first, num_experts + 1, 0);
  for (int64_t p = 0; p < pairs; ++p)
    if (in_range(ids[p], num_experts)) ++first[ids[p]];
  int64_t grouped = 0;
  for (int32_t e = 0; e < num_experts; ++e) grouped += std::exchange(first[e], grouped);
  // Filling moves first[e] to the end of e, which is the start of e + 1.
  for (int64_t p = 0; p < pairs; ++p)
    if (in_range(ids[p], num_experts)) order[first[ids[p]]++] = p;
  std::copy_backward(first, first + num_experts, first + num_experts + 1);
  first[0] = 0;
  return grouped;
}

int64_t aligned_capacity(int64_t pairs, int32_t num_experts, int32_t block_size) noexcept {
  return pairs < num_experts ? pairs * block_size
                             : pairs + num_experts * (static_cast<int64_t>(block_size) - 1);
}

void align_block_size(const int32_t* ids, int64_t pairs, int32_t num_experts, int32_t block_size,
                      const int32_t* expert_map, int64_t* scratch, AlignedBlocks* out) noexcept {
  const auto here = [&](int32_t id) {
    return in_range(id, num_experts) && (!expert_map || expert_map[id] >= 0);
  };
  const int64_t capacity = aligned_capacity(pairs, num_experts, block_size);
  std::fill_n(out->sorted_pairs, capacity, static_cast<int32_t>(pairs));
  std::fill_n(out->block_experts, (capacity + block_size - 1) / block_size, -1);

  int64_t* next = scratch;
  std::fill_n(next, num_experts, 0);
  for (int64_t p = 0; p < pairs; ++p)
    if (here(ids[p])) ++next[ids[p]];
  out->used = 0;
  for (int32_t e = 0; e < num_experts; ++e) {
    const int64_t size = round_up(next[e], block_size);
    next[e] = out->used;
    std::fill_n(out->block_experts + out->used / block_size, size / block_size,
                expert_map ? expert_map[e] : e);
    out->used += size;
  }
  for (int64_t p = 0; p < pairs; ++p)
    if (here(ids[p])) out->sorted_pairs[next[ids[p]]++] = static_cast<int32_t>(p);
}

}  // namespace moe
