// The CPU backend for int8 and int4 weights. A batch goes in four steps, shared among threads:
//
//   rows        the rows of each expert in tiles: q8, or f32 where rows must be exact
//   gate_up     panel pair by panel pair: products, bias, activation; f32 rows
//   rows again  the activations in tiles, as above
//   down        panel pair by panel pair: products, bias, batch.out
//
// A task of gate_up and down is a run of panel pairs of one expert for up to kChunkRows rows. q8
// rows meet the integers as they are; for exact rows a few blocks at a time are widened into the
// cache.
#include "gemm/quant_gemm.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/parallel.h"
#include "gemm/backends.h"
#include "gemm/cpu_pass.h"
#include "gemm/cpu_tasks.h"
#include "gemm/problem.h"
#include "gemm/quant_layout.h"
#include "gemm/quant_pack.h"
#include "quant/formats.h"

namespace moe::cpu {
namespace {

constexpr int64_t kChunkRows = 128;
constexpr int64_t kSmallRows = 32768;  // elements; for fewer, waking threads costs more
constexpr int64_t kWideBlocks = 4;     // widened at a time: 16 KiB

constexpr int64_t aligned(int64_t bytes) { return round_up(bytes, 64); }

// The workspace: starts, tiles of rows (of the input, later of the activations), activations, and a
// row for each thread.
struct Workspace {
  int64_t starts = 0, tiles = 0, activations = 0, scratch = 0, scratch_row = 0, bytes = 0;

  Workspace(const ExpertSpec& spec, const QuantSections& at, int64_t pairs, int64_t groups,
            int threads) {
    const int64_t columns = std::max(at.gate_up_panels.columns, at.down_panels.columns);
    scratch_row = aligned(round_up(spec.hidden, kBlock) * int64_t{sizeof(float)});
    tiles = aligned((groups + 1) * int64_t{sizeof(GroupStart)});
    activations = tiles + aligned(pairs * columns * int64_t{sizeof(float)});
    scratch = activations + aligned(pairs * spec.intermediate * int64_t{sizeof(float)});
    bytes = scratch + scratch_row * threads;
  }
};

// One batch.
class Run final : public Pass {
 public:
  Run(const QuantKernels& quant, const Kernels& kernels, bool exact, const ExpertSpec& spec,
      const ExpertBatch& batch)
      : quant_(quant),
        kernels_(kernels),
        exact_(exact),
        small_(spec.format.kind == FormatKind::int4),
        threads_(concurrency_of(batch.executor)),
        spec_(spec),
        batch_(batch),
        at_(quant_sections(spec)),
        layout_(spec, at_, pairs_in(batch), static_cast<int64_t>(batch.groups.size()), threads_),
        tile_rows_(exact ? TileRows{kernels.max_rows} : quant.tile_rows),
        tasks_(batch.groups, tile_rows_, kChunkRows / tile_rows_.most,
               reinterpret_cast<GroupStart*>(batch.workspace.data() + layout_.starts)),
        gate_up_runs_(at_.gate_up_pairs, at_.gate_up_pair_bytes, tasks_.total().chunk, threads_),
        down_runs_(at_.down_pairs, at_.down_pair_bytes, tasks_.total().chunk, threads_) {
    std::byte* base = batch.workspace.data();
    tiles_ = base + layout_.tiles;
    activations_ = reinterpret_cast<float*>(base + layout_.activations);
  }

  int steps() const override { return 4; }

  int64_t tasks(int step) const override {
    const GroupStart& total = tasks_.total();
    if (step == 0 || step == 2) return total.tile;
    return total.chunk * (step == 1 ? gate_up_runs_ : down_runs_).count;
  }

  bool large(int step) const override {
    return step == 1 || step == 3 || tasks_.total().row * spec_.hidden >= kSmallRows;
  }

  void run(int step, int64_t task, int worker) override {
    switch (step) {
      case 0: return pack_hidden(task, worker);
      case 1: return gate_up(task);
      case 2: return pack_activations(task);
      default: return down(task);
    }
  }

 private:
  // ---- rows

  // A tile to be packed, and where.
  struct TileAt {
    const ExpertGroup& group;
    const int32_t* order;  // null: column c is input c
    int64_t first_row, rows, columns;
    std::byte* group_tiles;
    int64_t group_rows;
  };

  TileAt tile_at(int64_t index, const QuantPanels& panels, int64_t order) const {
    const size_t g = tasks_.group_of_tile(index);
    const ExpertGroup& group = batch_.groups[g];
    const Tiles tiles = tasks_.tiles_of(g);
    const int64_t tile = index - tasks_.start(g).tile;
    const bool ordered = spec_.format.act_order;
    return {group,
            ordered ? reinterpret_cast<const int32_t*>(group.slot + order) : nullptr,
            tiles.first_row(tile),
            tiles.size(tile),
            panels.columns,
            tiles_ + tasks_.start(g).row * row_bytes(panels),
            tiles.rows};
  }

  int64_t row_bytes(const QuantPanels& panels) const {
    return exact_ ? panels.columns * int64_t{sizeof(float)} : panels.blocks() * kQ8RowBytes;
  }

  void pack_hidden(int64_t index, int worker) const {
    const TileAt tile = tile_at(index, at_.gate_up_panels, at_.gate_up_order);
    auto* row = reinterpret_cast<float*>(batch_.workspace.data() + layout_.scratch +
                                         layout_.scratch_row * worker);
    const int64_t* pairs = batch_.pairs + tile.group.first + tile.first_row;
    for (int64_t r = 0; r < tile.rows; ++r) {
      load_pair(batch_, pairs[r], 0, spec_.hidden, row);
      pack_row(tile, r, row, spec_.hidden);
    }
  }

  void pack_activations(int64_t index) const {
    const TileAt tile = tile_at(index, at_.down_panels, at_.down_order);
    const size_t g = static_cast<size_t>(&tile.group - batch_.groups.data());
    const float* row = activations_ + (tasks_.start(g).row + tile.first_row) * spec_.intermediate;
    for (int64_t r = 0; r < tile.rows; ++r, row += spec_.intermediate)
      pack_row(tile, r, row, spec_.intermediate);
  }

  // Row r of a tile from its `inputs` values.
  void pack_row(const TileAt& tile, int64_t r, const float* values, int64_t inputs) const {
    for (int64_t begin = 0; begin < tile.columns; begin += kBlock) {
      float picked[kBlock];
      const float* block = values + begin;
      if (tile.order || begin + kBlock > inputs) {
        pick(tile, begin, values, inputs, picked);
        block = picked;
      }
      if (exact_)
        store_exact(tile, r, begin, block);
      else
        store_q8(tile, r, begin, block);
    }
  }

  void pick(const TileAt& tile, int64_t begin, const float* values, int64_t inputs,
            float* block) const {
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t input = tile.order ? tile.order[begin + i] : begin + i;
      block[i] = input >= 0 && input < inputs ? values[input] : 0.0f;
    }
  }

  void store_q8(const TileAt& tile, int64_t r, int64_t begin, const float* block) const {
    const int64_t blocks = tile.columns / kBlock, at = begin / kBlock * tile.rows + r;
    std::byte* out = tile.group_tiles + tile.first_row * blocks * kQ8RowBytes;
    auto* q = reinterpret_cast<int8_t*>(out);
    auto* scales = reinterpret_cast<Q8Scale*>(out + tile.rows * blocks * kBlock);
    quant_.encode_q8(block, q + at * kBlock, scales + at);
  }

  // Exact rows lie range by range (kWideBlocks blocks), in each as the float kernels read them.
  void store_exact(const TileAt& tile, int64_t r, int64_t begin, const float* block) const {
    const int64_t range = begin / kWide * kWide, inputs = std::min(kWide, tile.columns - range);
    float* out = reinterpret_cast<float*>(tile.group_tiles) + range * tile.group_rows +
                 tile.first_row * inputs;
    for (int64_t i = 0; i < kBlock; ++i) out[(begin - range + i) * tile.rows + r] = block[i];
  }

  // ---- products

  static constexpr int64_t kWide = kWideBlocks * kBlock;
  static constexpr int64_t kMostSums = kChunkRows * kPair;

  QuantPair pair_at(const QuantPanels& panels, const std::byte* pair) const {
    return {pair,
            pair + panels.scales,
            spec_.format.zero_points ? pair + panels.zeros : nullptr,
            spec_.format.scale,
            panels.blocks(),
            panels.group_blocks};
  }

  // `next`: how many pairs on lies the one that this thread reads next.
  void multiply(const Chunk& chunk, const QuantPanels& panels, const std::byte* pair, int64_t next,
                float* sums) const {
    const std::byte* x = tiles_ + chunk.group_row * row_bytes(panels);
    if (exact_) return multiply_exact(chunk, panels, pair, x, sums);
    const QuantMultiply m = {pair_at(panels, pair),
                             x + chunk.first_row() * row_bytes(panels),
                             chunk.tiles,
                             chunk.first_tile,
                             chunk.tile_count,
                             sums,
                             chunk.whole() ? next * panels.pair_bytes : 0};
    (small_ ? quant_.multiply_int4 : quant_.multiply_int8)(m);
  }

  void multiply_exact(const Chunk& chunk, const QuantPanels& panels, const std::byte* pair,
                      const std::byte* x, float* sums) const {
    alignas(64) float wide[kWide * kPair], more[kMostSums];
    for (int64_t range = 0; range < panels.columns; range += kWide) {
      const int64_t inputs = std::min(kWide, panels.columns - range);
      const QuantWiden widen = {pair_at(panels, pair), range / kBlock, inputs / kBlock, wide};
      (small_ ? quant_.widen_int4 : quant_.widen_int8)(widen);
      const float* rows =
          reinterpret_cast<const float*>(x) + range * chunk.tiles.rows + chunk.first_row() * inputs;
      kernels_.multiply_f32({reinterpret_cast<const std::byte*>(wide), inputs, rows, chunk.tiles,
                             chunk.first_tile, chunk.tile_count, range == 0 ? sums : more});
      if (range == 0) continue;
      for (int64_t i = 0; i < chunk.rows() * kPair; ++i) sums[i] += more[i];
    }
  }

  void gate_up(int64_t task) const {
    int64_t run;
    const Chunk chunk = tasks_.chunk_of(task, gate_up_runs_, &run);
    for (int64_t pair = gate_up_runs_.begin(run); pair < gate_up_runs_.begin(run + 1); ++pair)
      gate_up(chunk, pair, gate_up_runs_.to_next(run, pair, threads_));
  }

  void gate_up(const Chunk& chunk, int64_t pair, int64_t next) const {
    alignas(64) float sums[kMostSums];
    const std::byte* slot = chunk.group->slot;
    multiply(chunk, at_.gate_up_panels, slot + at_.gate_up + pair * at_.gate_up_panels.pair_bytes,
             next, sums);
    kernels_.activate(spec_, bias_of(slot, at_.gate_up_bias, pair), chunk.rows(), sums);
    const int64_t outputs = outputs_of_pair(spec_), first = pair * outputs;
    const int64_t kept = std::min(outputs, spec_.intermediate - first);
    float* out = activations_ + (chunk.group_row + chunk.first_row()) * spec_.intermediate + first;
    for (int64_t r = 0; r < chunk.rows(); ++r, out += spec_.intermediate)
      std::copy_n(sums + r * kPair, kept, out);
  }

  void down(int64_t task) const {
    int64_t run;
    const Chunk chunk = tasks_.chunk_of(task, down_runs_, &run);
    for (int64_t pair = down_runs_.begin(run); pair < down_runs_.begin(run + 1); ++pair)
      down(chunk, pair, down_runs_.to_next(run, pair, threads_));
  }

  void down(const Chunk& chunk, int64_t pair, int64_t next) const {
    alignas(64) float sums[kMostSums];
    const std::byte* slot = chunk.group->slot;
    multiply(chunk, at_.down_panels, slot + at_.down + pair * at_.down_panels.pair_bytes, next,
             sums);
    store_outputs(spec_, batch_, chunk, pair, bias_of(slot, at_.down_bias, pair), sums);
  }

  const float* bias_of(const std::byte* slot, int64_t section, int64_t pair) const {
    if (!spec_.bias) return nullptr;
    return reinterpret_cast<const float*>(slot + section) + pair * kPair;
  }

  const QuantKernels& quant_;
  const Kernels& kernels_;
  const bool exact_;
  const bool small_;
  const int threads_;
  const ExpertSpec& spec_;
  const ExpertBatch& batch_;
  const QuantSections at_;
  const Workspace layout_;
  const TileRows tile_rows_;
  const TaskList tasks_;
  const Runs gate_up_runs_, down_runs_;
  std::byte* tiles_ = nullptr;    // tile by tile within each group
  float* activations_ = nullptr;  // (rows, intermediate)
};

class QuantGemm final : public PassGemm {
 public:
  QuantGemm(const QuantKernels& quant, const Kernels& kernels, RowPrecision rows)
      : quant_(quant), kernels_(kernels), exact_(rows == RowPrecision::exact) {}

  const char* name() const noexcept override { return "cpu_quant"; }

  Status supports(const ExpertSpec& spec) const override {
    MOE_RETURN_IF_ERROR(check_spec(spec));
    return check_integer_format(spec, name());
  }

  SlotLayout layout(const ExpertSpec& spec) const override {
    return {"cpu-panels16-" + format_name(spec.format),
            static_cast<size_t>(quant_sections(spec).bytes), 64};
  }

  Status pack(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
              std::byte* slot) const override {
    const Place place = {
        .file = source.name(), .layer = layer, .expert = expert, .phase = Phase::load};
    return guarded(place, [&]() -> Status {
      MOE_RETURN_IF_ERROR(supports(spec));
      return pack_quant_expert(spec, source, layer, expert, slot).at(place);
    });
  }

  size_t workspace_bytes(const ExpertSpec& spec, int64_t pairs, int64_t groups,
                         int concurrency) const noexcept override {
    constexpr int64_t kMost = int64_t{1} << 31;  // times 2^29 inputs and 4 bytes: below 2^63
    if (pairs < 0 || pairs > kMost || groups < 0 || groups > kMost) return SIZE_MAX;
    return static_cast<size_t>(
        Workspace(spec, quant_sections(spec), pairs, groups, concurrency).bytes);
  }

  double error_bound(const ExpertSpec&, DType) const noexcept override {
    return exact_ ? 2e-6 : 2e-2;
  }

  Status plan(const ExpertSpec& spec, const ExpertBatch& batch, PassSpace* pass) const override {
    MOE_RETURN_IF_ERROR(supports(spec));
    const int64_t pairs = pairs_in(batch), groups = static_cast<int64_t>(batch.groups.size());
    MOE_RETURN_IF_ERROR(check_cpu_batch(
        spec, batch, workspace_bytes(spec, pairs, groups, concurrency_of(batch.executor))));
    if (pairs > 0) pass->emplace<Run>(quant_, kernels_, exact_, spec, batch);
    return {};
  }

 private:
  const QuantKernels& quant_;
  const Kernels& kernels_;
  const bool exact_;
};

}  // namespace

std::unique_ptr<ExpertGemm> make_quant_gemm(const QuantKernels& quant, const Kernels& kernels,
                                            RowPrecision rows) {
  return std::make_unique<QuantGemm>(quant, kernels, rows);
}

}  // namespace moe::cpu

namespace moe {

std::unique_ptr<ExpertGemm> make_cpu_quant_gemm(const ExpertGemmOptions& options) {
  return cpu::make_quant_gemm(cpu::best_quant_kernels(), cpu::best_kernels(), options.rows);
}

}  // namespace moe
