// The CPU backend people run. run() goes in three steps, each shared among the executor's threads:
//
//   gather    the rows of each expert as f32, cut into tiles of at most kernels.max_rows rows, each
//             stored [inputs][rows], so that a kernel reads it front to back
//   gate_up   panel pair by panel pair: products, bias, activation; the results are tiles again
//   down      panel pair by panel pair: products, bias, batch.out
//
// A task of the last two is one panel pair of one expert for a chunk of up to kChunkTiles tiles:
// weights come from memory once per task and stay in the cache for all of its tiles.
#include "gemm/cpu_gemm.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/parallel.h"
#include "gemm/backends.h"
#include "gemm/cpu_layout.h"
#include "gemm/cpu_pack.h"
#include "gemm/problem.h"

namespace moe::cpu {
namespace {

constexpr int64_t kChunkTiles = 10;
constexpr int64_t kGatherBlock = 64;     // inputs transposed at a time
constexpr int64_t kSmallGather = 32768;  // elements; for fewer, waking threads costs more

// What lies before a group in the batch. One more than there are groups, in the workspace.
struct GroupStart {
  int64_t row = 0;
  int64_t tile = 0;
  int64_t chunk = 0;
};

constexpr int64_t aligned(int64_t bytes) { return round_up(bytes, 64); }

// The workspace: starts, packed input rows, packed activations.
struct Workspace {
  int64_t starts = 0, x = 0, activations = 0, bytes = 0;

  Workspace(const Sections& at, int64_t pairs, int64_t groups) {
    x = aligned((groups + 1) * int64_t{sizeof(GroupStart)});
    activations = x + aligned(pairs * at.hidden_inputs * int64_t{sizeof(float)});
    bytes = activations + aligned(pairs * at.intermediate_inputs * int64_t{sizeof(float)});
  }
};

// Some tiles of one group.
struct Chunk {
  const ExpertGroup* group;
  Tiles tiles;
  int64_t group_row;  // first row of the group among all rows of the batch
  int64_t first_tile;
  int64_t tile_count;
};

// One run().
class Run {
 public:
  Run(const Kernels& kernels, const ExpertSpec& spec, const ExpertBatch& batch)
      : kernels_(kernels), spec_(spec), batch_(batch), at_(sections(spec)) {
    const Workspace layout(at_, pairs_in(batch), static_cast<int64_t>(batch.groups.size()));
    starts_ = reinterpret_cast<GroupStart*>(batch.workspace.data() + layout.starts);
    x_ = reinterpret_cast<float*>(batch.workspace.data() + layout.x);
    activations_ = reinterpret_cast<float*>(batch.workspace.data() + layout.activations);
    switch (spec.format.kind) {
      case FormatKind::f32: multiply_ = kernels.multiply_f32; break;
      case FormatKind::f16: multiply_ = kernels.multiply_f16; break;
      default: multiply_ = kernels.multiply_bf16;
    }
    GroupStart start;
    for (size_t g = 0; g < batch.groups.size(); ++g) {
      starts_[g] = start;
      const Tiles tiles = tiles_of(batch.groups[g]);
      start.row += tiles.rows;
      start.tile += tiles.count;
      start.chunk += (tiles.count + kChunkTiles - 1) / kChunkTiles;
    }
    starts_[batch.groups.size()] = end_ = start;
  }

  void compute() {
    const bool small = end_.row * at_.hidden_inputs < kSmallGather;
    parallel_for(small ? nullptr : batch_.executor, end_.tile,
                 [this](int64_t tile, int) { gather(tile); });
    parallel_for(batch_.executor, end_.chunk * at_.gate_up_pairs,
                 [this](int64_t task, int) { gate_up(task); });
    parallel_for(batch_.executor, end_.chunk * at_.down_pairs,
                 [this](int64_t task, int) { down(task); });
  }

 private:
  Tiles tiles_of(const ExpertGroup& group) const { return {group.count, kernels_.max_rows}; }

  // The last group that starts at or before `value`, counted in `field`.
  size_t group_at(int64_t GroupStart::*field, int64_t value) const {
    const GroupStart *begin = starts_, *end = begin + batch_.groups.size() + 1;
    const GroupStart* after = std::upper_bound(
        begin, end, value, [=](int64_t v, const GroupStart& start) { return v < start.*field; });
    return static_cast<size_t>(after - begin) - 1;
  }

  // Tasks go group by group, then panel pair by panel pair, then chunk by chunk.
  Chunk chunk_of(int64_t task, int64_t panel_pairs, int64_t* panel_pair) const {
    const size_t g = group_at(&GroupStart::chunk, task / panel_pairs);
    const ExpertGroup& group = batch_.groups[g];
    const int64_t chunks = starts_[g + 1].chunk - starts_[g].chunk;
    const int64_t local = task - starts_[g].chunk * panel_pairs;
    const Tiles tiles = tiles_of(group);
    const int64_t first = local % chunks * kChunkTiles;
    *panel_pair = local / chunks;
    return {&group, tiles, starts_[g].row, first, std::min(kChunkTiles, tiles.count - first)};
  }

  // Packs tile `index` of the batch.
  void gather(int64_t index) const {
    const size_t g = group_at(&GroupStart::tile, index);
    const Tiles tiles = tiles_of(batch_.groups[g]);
    const int64_t tile = index - starts_[g].tile, rows = tiles.size(tile);
    const int64_t first = tiles.first_row(tile);
    const int64_t* pairs = batch_.pairs + batch_.groups[g].first + first;
    float* out = x_ + (starts_[g].row + first) * at_.hidden_inputs;
    float block[kMaxTileRows][kGatherBlock];
    for (int64_t begin = 0; begin < spec_.hidden; begin += kGatherBlock) {
      const int64_t count = std::min(kGatherBlock, spec_.hidden - begin);
      for (int64_t r = 0; r < rows; ++r) load_pair(batch_, pairs[r], begin, count, block[r]);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t r = 0; r < rows; ++r) *out++ = block[r][i];
    }
    std::fill_n(out, (at_.hidden_inputs - spec_.hidden) * rows, 0.0f);
  }

  void multiply(const Chunk& chunk, const std::byte* panels, int64_t inputs, const float* x,
                float* sums) const {
    const int64_t row = chunk.group_row + chunk.tiles.first_row(chunk.first_tile);
    multiply_(
        {panels, inputs, x + row * inputs, chunk.tiles, chunk.first_tile, chunk.tile_count, sums});
  }

  void gate_up(int64_t task) const {
    alignas(64) float sums[kChunkTiles * kMaxTileRows * kPair];
    int64_t pair;
    const Chunk chunk = chunk_of(task, at_.gate_up_pairs, &pair);
    const std::byte* slot = chunk.group->slot;
    multiply(chunk, slot + at_.gate_up + pair * at_.gate_up_pair_bytes, at_.hidden_inputs, x_,
             sums);
    const float* bias = bias_of(slot, at_.gate_up_bias, pair);
    float* row = sums;
    for (int64_t t = chunk.first_tile; t < chunk.first_tile + chunk.tile_count; ++t) {
      const int64_t rows = chunk.tiles.size(t);
      float* tile =
          activations_ + (chunk.group_row + chunk.tiles.first_row(t)) * at_.intermediate_inputs;
      for (int64_t r = 0; r < rows; ++r, row += kPair) activate(row, bias, pair, tile + r, rows);
    }
  }

  // Bias and activation of one row of a panel pair, written to column `out` of a packed tile.
  void activate(float* row, const float* bias, int64_t pair, float* out, int64_t stride) const {
    if (bias)
      for (int64_t i = 0; i < kPair; ++i) row[i] += bias[i];
    const int64_t outputs = outputs_of_pair(spec_), first = pair * outputs;
    kernels_.activate(spec_, row, spec_.gated ? row + kPanel : row, outputs, row);
    const int64_t kept = std::min(outputs, at_.intermediate_inputs - first);
    for (int64_t i = 0; i < kept; ++i)
      out[(first + i) * stride] = first + i < spec_.intermediate ? row[i] : 0.0f;
  }

  void down(int64_t task) const {
    alignas(64) float sums[kChunkTiles * kMaxTileRows * kPair];
    int64_t pair;
    const Chunk chunk = chunk_of(task, at_.down_pairs, &pair);
    const std::byte* slot = chunk.group->slot;
    multiply(chunk, slot + at_.down + pair * at_.down_pair_bytes, at_.intermediate_inputs,
             activations_, sums);
    const float* bias = bias_of(slot, at_.down_bias, pair);
    const int64_t column = pair * kPair, columns = std::min(kPair, spec_.hidden - column);
    const int64_t begin = chunk.tiles.first_row(chunk.first_tile);
    const int64_t last = chunk.first_tile + chunk.tile_count - 1;
    const int64_t end = chunk.tiles.first_row(last) + chunk.tiles.size(last);
    const float* row = sums;
    for (int64_t r = begin; r < end; ++r, row += kPair) {
      float* out = batch_.out + batch_.pairs[chunk.group->first + r] * spec_.hidden + column;
      for (int64_t i = 0; i < columns; ++i) out[i] = bias ? row[i] + bias[i] : row[i];
    }
  }

  const float* bias_of(const std::byte* slot, int64_t section, int64_t pair) const {
    if (!spec_.bias) return nullptr;
    return reinterpret_cast<const float*>(slot + section) + pair * kPair;
  }

  const Kernels& kernels_;
  const ExpertSpec& spec_;
  const ExpertBatch& batch_;
  const Sections at_;
  void (*multiply_)(const Multiply&) = nullptr;
  GroupStart* starts_ = nullptr;
  GroupStart end_;
  float* x_ = nullptr;            // (rows, hidden_inputs), tile by tile
  float* activations_ = nullptr;  // (rows, intermediate_inputs), tile by tile
};

class CpuGemm final : public ExpertGemm {
 public:
  explicit CpuGemm(const Kernels& kernels) : kernels_(kernels) {}

  const char* name() const noexcept override { return "cpu"; }

  Status supports(const ExpertSpec& spec) const override {
    MOE_RETURN_IF_ERROR(check_spec(spec));
    return check_float_format(spec, name());
  }

  SlotLayout layout(const ExpertSpec& spec) const override {
    return {std::string("cpu-panels16-") + to_string(spec.format.kind),
            static_cast<size_t>(sections(spec).bytes), 64};
  }

  Status pack(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
              std::byte* slot) const override {
    const Place place = {
        .file = source.name(), .layer = layer, .expert = expert, .phase = Phase::load};
    return guarded(place, [&]() -> Status {
      MOE_RETURN_IF_ERROR(supports(spec));
      return pack_expert(spec, source, layer, expert, slot).at(place);
    });
  }

  size_t workspace_bytes(const ExpertSpec& spec, int64_t pairs, int64_t groups,
                         int) const noexcept override {
    constexpr int64_t kMost = int64_t{1} << 31;  // times 2^29 inputs and 4 bytes: below 2^63
    if (pairs < 0 || pairs > kMost || groups < 0 || groups > kMost) return SIZE_MAX;
    return static_cast<size_t>(Workspace(sections(spec), pairs, groups).bytes);
  }

  Status run(const ExpertSpec& spec, const ExpertBatch& batch) const override {
    MOE_RETURN_IF_ERROR(supports(spec));
    const int64_t pairs = pairs_in(batch), groups = static_cast<int64_t>(batch.groups.size());
    MOE_RETURN_IF_ERROR(check_cpu_batch(spec, batch, workspace_bytes(spec, pairs, groups, 1)));
    if (pairs > 0) Run(kernels_, spec, batch).compute();
    return {};
  }

 private:
  const Kernels& kernels_;
};

}  // namespace

std::unique_ptr<ExpertGemm> make_gemm(const Kernels& kernels) {
  return std::make_unique<CpuGemm>(kernels);
}

}  // namespace moe::cpu

namespace moe {

std::unique_ptr<ExpertGemm> make_cpu_gemm(const ExpertGemmOptions&) {
  return cpu::make_gemm(cpu::best_kernels());
}

}  // namespace moe
