// launch_permute's grouping for few pairs: each looks at all others.
#pragma once

#include "permute/permute.h"

namespace moe::cuda {

// f(q, id of pair q) for all pairs; four ids a load.
template <class F>
__device__ void for_each_pair(const int32_t* ids, int pairs, const F& f) {
#pragma unroll 1
  for (int q = 0; q < pairs; q += 4) {
    const int4 four = *reinterpret_cast<const int4*>(ids + q);
    f(q, four.x), f(q + 1, four.y), f(q + 2, four.z), f(q + 3, four.w);
  }
}

// Whether pair id q comes before id; no expert (-1) comes before none.
__device__ inline bool comes_before(int32_t q, int32_t id) {
  return static_cast<uint32_t>(q) < static_cast<uint32_t>(id);
}

// By one warp: lane p has the pair p of one token, whose ids differ.
__device__ inline void group_one_token(const GroupArgs& out, int32_t id) {
  const int p = threadIdx.x % 32;
  const int slot = id >= 0 ? out.slot_of_expert[id] : -1;
  int row = 0, tile = 0;
  const unsigned with_slot = __ballot_sync(0xffffffffu, slot >= 0);
#pragma unroll 1
  for (int q = 0; q < out.top_k; ++q) {
    const int32_t other = __shfl_sync(0xffffffffu, id, q);
    row += comes_before(other, id);
    tile += comes_before(other, id) && (with_slot >> q & 1);
  }
  if (p == 0) *out.tile_count = __popc(with_slot);
  if (p < out.top_k) out.row_of_pair[p] = id >= 0 ? row : -1;
  if (id < 0) return;
  out.row_token[row] = 0;
  if (slot >= 0) out.tiles[tile] = {slot, tile, 1, row, 1, id, {0, 0}};
  count_rows(out, id, 1);
}

// By one block: `id` is that of the thread's pair; at most kMaxFewPairs pairs, a thread each, all
// of which call this. ids[2]: arrays of kMaxFewPairs in shared memory, aligned to 16 bytes.
__device__ inline void group_few(const GroupArgs& out, int32_t id,
                                 int32_t (&ids)[2][kMaxFewPairs]) {
  const int pairs = static_cast<int>(out.tokens) * out.top_k, p = threadIdx.x;
  const bool grouped = p < pairs && id >= 0;
  const int slot = grouped ? out.slot_of_expert[id] : -1;
  ids[0][p] = p < pairs ? id : -1;
  __syncthreads();
  int begin = 0, rank = 0, rows = 0;
  if (grouped)
    for_each_pair(ids[0], pairs, [&](int q, int32_t other) {
      begin += comes_before(other, id);
      rank += q < p && other == id;
      rows += other == id;
    });
  if (grouped && rank == 0) count_rows(out, id, rows);
  if (p < pairs) out.row_of_pair[p] = grouped ? begin + rank : -1;
  if (grouped) out.row_token[begin + rank] = p / out.top_k;

  const bool opens_tile = slot >= 0 && rank % out.tile_tokens == 0;
  ids[1][p] = opens_tile ? id : -1;
  const int tiles = __syncthreads_count(opens_tile);
  if (p == 0) *out.tile_count = tiles;
  if (!opens_tile) return;
  int first = 0;
  for_each_pair(ids[1], pairs, [&](int, int32_t other) { first += comes_before(other, id); });
  out.tiles[first + rank / out.tile_tokens] = {
      slot, first, (rows + out.tile_tokens - 1) / out.tile_tokens, begin, rows, id, {0, 0}};
}

}  // namespace moe::cuda
