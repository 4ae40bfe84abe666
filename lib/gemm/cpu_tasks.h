// How a CPU backend shares a batch among threads: each group's rows cut into tiles, tiles gathered
// into chunks, and a task for every chunk and run of panel pairs of an expert.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "gemm/cpu_layout.h"
#include "moe/expert_gemm.h"

namespace moe::cpu {

// What lies before a group in the batch. One more than there are groups, in the workspace.
struct GroupStart {
  int64_t row = 0;
  int64_t tile = 0;
  int64_t chunk = 0;
};

// Some tiles of one group.
struct Chunk {
  const ExpertGroup* group;
  Tiles tiles;
  int64_t group_row;  // first row of the group among all rows of the batch
  int64_t first_tile;
  int64_t tile_count;

  bool whole() const { return tile_count == tiles.count; }  // all rows of the group
  int64_t first_row() const { return tiles.first_row(first_tile); }
  int64_t rows() const {
    const int64_t last = first_tile + tile_count - 1;
    return tiles.first_row(last) + tiles.size(last) - first_row();
  }
};

// The panel pairs of one matrix cut into runs of neighbours, one to a task: memory is read best in
// long pieces, and a pair may have only 18 KB.
struct Runs {
  int64_t pairs = 0;
  int64_t count = 0;

  // `chunks`: tasks per run. Leaves enough tasks to share among `threads`.
  constexpr Runs(int64_t panel_pairs, int64_t pair_bytes, int64_t chunks, int threads)
      : pairs(panel_pairs) {
    constexpr int64_t kRunBytes = 128 << 10, kTasksPerThread = 32;
    const int64_t most =
        std::min(kRunBytes / pair_bytes, pairs * chunks / (kTasksPerThread * threads));
    const int64_t each = std::max<int64_t>(1, most);
    count = (pairs + each - 1) / each;
  }
  constexpr int64_t begin(int64_t run) const { return run * pairs / count; }

  // How many pairs on lies what a thread reads after `pair` of `run`, if all are equally fast.
  constexpr int64_t to_next(int64_t run, int64_t pair, int threads) const {
    return pair + 1 < begin(run + 1) ? 1 : begin(run + threads) - pair;
  }
};

class TaskList {
 public:
  // Chunks of `chunk_tiles` tiles. `starts` has room for one more than there are groups, is written
  // here and must outlive the list, as must `groups`.
  TaskList(std::span<const ExpertGroup> groups, const TileRows& tile_rows, int64_t chunk_tiles,
           GroupStart* starts)
      : groups_(groups), tile_rows_(tile_rows), chunk_tiles_(chunk_tiles), starts_(starts) {
    GroupStart start;
    for (size_t g = 0; g < groups.size(); ++g) {
      starts[g] = start;
      const Tiles tiles = tiles_of(g);
      start.row += tiles.rows;
      start.tile += tiles.count;
      start.chunk += (tiles.count + chunk_tiles - 1) / chunk_tiles;
    }
    starts[groups.size()] = start;
  }

  const GroupStart& total() const { return starts_[groups_.size()]; }
  const GroupStart& start(size_t group) const { return starts_[group]; }
  Tiles tiles_of(size_t group) const {
    const int64_t rows = groups_[group].count;
    return {rows, tile_rows_.of(rows)};
  }
  size_t group_of_tile(int64_t tile) const { return group_at(&GroupStart::tile, tile); }

  // Tasks go group by group, then run by run, then chunk by chunk.
  Chunk chunk_of(int64_t task, const Runs& runs, int64_t* run) const {
    const size_t g = group_at(&GroupStart::chunk, task / runs.count);
    const int64_t chunks = starts_[g + 1].chunk - starts_[g].chunk;
    const int64_t local = task - starts_[g].chunk * runs.count;
    const Tiles tiles = tiles_of(g);
    const int64_t first = local % chunks * chunk_tiles_;
    *run = local / chunks;
    return {&groups_[g], tiles, starts_[g].row, first, std::min(chunk_tiles_, tiles.count - first)};
  }

 private:
  // The last group that starts at or before `value`, counted in `field`.
  size_t group_at(int64_t GroupStart::*field, int64_t value) const {
    const GroupStart *begin = starts_, *end = begin + groups_.size() + 1;
    const GroupStart* after = std::upper_bound(
        begin, end, value, [=](int64_t v, const GroupStart& start) { return v < start.*field; });
    return static_cast<size_t>(after - begin) - 1;
  }

  std::span<const ExpertGroup> groups_;
  TileRows tile_rows_;
  int64_t chunk_tiles_;
  const GroupStart* starts_;
};

// The sums of panel pair `pair` of the down projection, (rows of the chunk, kPair), and their
// biases (kPair; null: none), to where batch.out has them.
inline void store_outputs(const ExpertSpec& spec, const ExpertBatch& batch, const Chunk& chunk,
                          int64_t pair, const float* bias, float* sums) {
  const int64_t column = pair * kPair, columns = std::min(kPair, spec.hidden - column);
  const int64_t* pairs = batch.pairs + chunk.group->first + chunk.first_row();
  for (int64_t r = 0; r < chunk.rows(); ++r, sums += kPair) {
    if (bias)
      for (int64_t i = 0; i < kPair; ++i) sums[i] += bias[i];
    std::copy_n(sums, columns, batch.out + pairs[r] * spec.hidden + column);
  }
}

}  // namespace moe::cpu
