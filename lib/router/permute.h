// From "which experts does a row take" to "which rows does an expert take".
#pragma once

#include <cstdint>
#include <span>

#include "moe/expert_gemm.h"

namespace moe {

// Stable counting sort of pairs (p = token * top_k + place) by expert. `ids` (pairs); ids outside
// [0, num_experts) are in no group. first (num_experts + 1) and order (pairs) are filled so that
// expert e has the pairs order[first[e]] ... order[first[e + 1] - 1], ascending. Returns how many
// pairs are in a group, which is first[num_experts]. O(pairs + num_experts); allocates nothing.
int64_t group_pairs(const int32_t* ids, int64_t pairs, int32_t num_experts, int64_t* first,
                    int64_t* order) noexcept;

// The same padded for kernels that work on blocks of one expert; equal to vLLM's
// moe_align_block_size. `expert_map` (num_experts) gives local indices, -1 for experts that are not
// here; null: the identity.
struct AlignedBlocks {
  int32_t* sorted_pairs = nullptr;   // (capacity) pairs; the sentinel `pairs` where there is none
  int32_t* block_experts = nullptr;  // (capacity / block_size, rounded up) local expert, -1 unused
  int64_t used = 0;                  // num_tokens_post_pad; a multiple of block_size
};

// Elements of sorted_pairs: pairs + num_experts * (block_size - 1), or pairs * block_size if there
// are fewer pairs than experts.
int64_t aligned_capacity(int64_t pairs, int32_t num_experts, int32_t block_size) noexcept;

// Fills both arrays of `out` whole. `scratch`: num_experts values.
void align_block_size(const int32_t* ids, int64_t pairs, int32_t num_experts, int32_t block_size,
                      const int32_t* expert_map, int64_t* scratch, AlignedBlocks* out) noexcept;

}  // namespace moe
