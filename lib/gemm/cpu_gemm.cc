// The CPU backend people run. A batch goes in three steps, each shared among the executor's
// threads:
//
//   gather    the rows of each expert as f32 or bf16, cut into tiles of at most max_rows rows, each
//             stored [inputs / unit][rows][unit], so that a kernel reads it front to back
//   gate_up   panel pair by panel pair: products, bias, activation; the results are tiles again
//   down      panel pair by panel pair: products, bias, batch.out
//
// A task of the last two is a run of panel pairs of one expert for a chunk of up to kChunkRows
// rows: weights come from memory once per task and stay in the cache for all of its tiles.
#include "gemm/cpu_gemm.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/parallel.h"
#include "gemm/backends.h"
#include "gemm/cpu_layout.h"
#include "gemm/cpu_pack.h"
#include "gemm/cpu_pass.h"
#include "gemm/cpu_tasks.h"
#include "gemm/problem.h"
#include "quant/formats.h"

namespace moe::cpu {
namespace {

constexpr int64_t kChunkRows = 128;
constexpr int64_t kGatherBlock = 64;     // inputs transposed at a time
constexpr int64_t kSmallGather = 32768;  // elements; for fewer, waking threads costs more

constexpr int64_t aligned(int64_t bytes) { return round_up(bytes, 64); }

// How the rows of a tile lie: [inputs / unit][rows][unit], f32 or bf16.
struct RowForm {
  bool bf16 = false;
  int64_t unit = 1;
  int64_t max_rows = 0;

  // `inputs` is even.
  int64_t padded(int64_t inputs) const { return round_up(inputs, unit); }
  int64_t row_bytes(int64_t inputs) const { return padded(inputs) * (bf16 ? 2 : 4); }
};

RowForm row_form(const Kernels& kernels, bool bf16) {
  if (bf16) return {true, kernels.bf16.unit, kernels.bf16.max_rows};
  return {false, 1, kernels.max_rows};
}

// The workspace: starts, packed input rows, packed activations. The same for every form of rows.
struct Workspace {
  int64_t starts = 0, x = 0, activations = 0, bytes = 0;

  Workspace(const Kernels& kernels, const Sections& at, int64_t pairs, int64_t groups) {
    const auto most = [&](int64_t inputs) {
      const int64_t wide = row_form(kernels, false).row_bytes(inputs);
      if (!kernels.bf16.multiply) return wide;
      return std::max(wide, row_form(kernels, true).row_bytes(inputs));
    };
    x = aligned((groups + 1) * int64_t{sizeof(GroupStart)});
    activations = x + aligned(pairs * most(at.hidden_inputs));
    bytes = activations + aligned(pairs * most(at.intermediate_inputs));
  }
};

// One batch.
class Run final : public Pass {
 public:
  Run(const Kernels& kernels, RowPrecision rows, const ExpertSpec& spec, const ExpertBatch& batch)
      : kernels_(kernels),
        threads_(concurrency_of(batch.executor)),
        spec_(spec),
        batch_(batch),
        at_(sections(spec)),
        form_(row_form(kernels,
                       takes_bf16_rows(kernels, spec.format.kind, batch.hidden.dtype, rows))),
        layout_(kernels, at_, pairs_in(batch), static_cast<int64_t>(batch.groups.size())),
        tasks_(batch.groups, {form_.max_rows}, kChunkRows / form_.max_rows,
               reinterpret_cast<GroupStart*>(batch.workspace.data() + layout_.starts)),
        gate_up_runs_(at_.gate_up_pairs, at_.gate_up_pair_bytes, tasks_.total().chunk, threads_),
        down_runs_(at_.down_pairs, at_.down_pair_bytes, tasks_.total().chunk, threads_) {
    x_ = batch.workspace.data() + layout_.x;
    activations_ = batch.workspace.data() + layout_.activations;
    switch (spec.format.kind) {
      case FormatKind::f32: multiply_ = kernels.multiply_f32; break;
      case FormatKind::f16: multiply_ = kernels.multiply_f16; break;
      case FormatKind::fp8_block: multiply_ = kernels.multiply_fp8; break;
      default: multiply_ = form_.bf16 ? kernels.bf16.multiply : kernels.multiply_bf16;
    }
  }

  int steps() const override { return 3; }

  int64_t tasks(int step) const override {
    const GroupStart& total = tasks_.total();
    if (step == 0) return total.tile;
    return total.chunk * (step == 1 ? gate_up_runs_ : down_runs_).count;
  }

  bool large(int step) const override {
    return step > 0 || tasks_.total().row * at_.hidden_inputs >= kSmallGather;
  }

  void run(int step, int64_t task, int) override {
    if (step == 0) return gather(task);
    step == 1 ? gate_up(task) : down(task);
  }

 private:
  // Packs tile `index` of the batch.
  void gather(int64_t index) const {
    const size_t g = tasks_.group_of_tile(index);
    const Tiles tiles = tasks_.tiles_of(g);
    const int64_t tile = index - tasks_.start(g).tile, rows = tiles.size(tile);
    const int64_t first = tiles.first_row(tile);
    const int64_t* pairs = batch_.pairs + batch_.groups[g].first + first;
    std::byte* out = x_ + (tasks_.start(g).row + first) * form_.row_bytes(at_.hidden_inputs);
    if (form_.bf16)
      gather_bf16(pairs, rows, reinterpret_cast<uint16_t*>(out));
    else
      gather_f32(pairs, rows, reinterpret_cast<float*>(out));
  }

  void gather_f32(const int64_t* pairs, int64_t rows, float* out) const {
    float block[kMaxTileRows][kGatherBlock];
    for (int64_t begin = 0; begin < spec_.hidden; begin += kGatherBlock) {
      const int64_t count = std::min(kGatherBlock, spec_.hidden - begin);
      for (int64_t r = 0; r < rows; ++r) load_pair(batch_, pairs[r], begin, count, block[r]);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t r = 0; r < rows; ++r) *out++ = block[r][i];
    }
    std::fill_n(out, (at_.hidden_inputs - spec_.hidden) * rows, 0.0f);
  }

  // Rows of bf16 are copied as they are, others rounded.
  void gather_bf16(const int64_t* pairs, int64_t rows, uint16_t* out) const {
    const TensorView& hidden = batch_.hidden;
    const bool as_is =
        hidden.dtype == DType::bf16 && hidden.strides[1] == 1 && !batch_.input_weights;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t whole = as_is ? spec_.hidden / kGatherBlock * kGatherBlock : 0;
      const auto* row = as_is ? static_cast<const uint16_t*>(hidden.data) +
                                    pairs[r] / batch_.top_k * hidden.strides[0]
                              : nullptr;
      for (int64_t begin = 0; begin < whole; begin += kGatherBlock)
        place_bf16(row + begin, begin, begin + kGatherBlock, r, rows, out);
      for (int64_t begin = whole; begin < form_.padded(at_.hidden_inputs); begin += kGatherBlock) {
        float values[kGatherBlock] = {};
        uint16_t rounded[kGatherBlock];
        const int64_t count = std::min(kGatherBlock, spec_.hidden - begin);
        if (count > 0) load_pair(batch_, pairs[r], begin, count, values);
        kernels_.bf16.round(values, kGatherBlock, rounded);
        const int64_t end = std::min(begin + kGatherBlock, form_.padded(at_.hidden_inputs));
        place_bf16(rounded, begin, end, r, rows, out);
      }
    }
  }

  // Inputs [begin, end) of row r of a tile.
  void place_bf16(const uint16_t* from, int64_t begin, int64_t end, int64_t r, int64_t rows,
                  uint16_t* tile) const {
    const int64_t unit = form_.unit;  // divides kGatherBlock
    for (int64_t i = begin; i < end; i += unit)
      std::memcpy(tile + i * rows + r * unit, from + (i - begin),
                  static_cast<size_t>(unit) * sizeof(uint16_t));
  }

  void multiply(const Chunk& chunk, const std::byte* panels, const std::byte* next, int64_t inputs,
                const std::byte* x, float* sums) const {
    const int64_t row = chunk.group_row + chunk.first_row();
    x += row * form_.row_bytes(inputs);
    multiply_({.panels = panels,
               .inputs = inputs,
               .x = reinterpret_cast<const float*>(x),
               .tiles = chunk.tiles,
               .first_tile = chunk.first_tile,
               .tile_count = chunk.tile_count,
               .sums = sums,
               .group = spec_.format.group,
               .next_panels = chunk.whole() ? next : nullptr,
               .bf16_x = reinterpret_cast<const uint16_t*>(x)});
  }

  void gate_up(int64_t task) const {
    int64_t run;
    const Chunk chunk = tasks_.chunk_of(task, gate_up_runs_, &run);
    for (int64_t pair = gate_up_runs_.begin(run); pair < gate_up_runs_.begin(run + 1); ++pair)
      gate_up(chunk, pair, pair + gate_up_runs_.to_next(run, pair, threads_));
  }

  void gate_up(const Chunk& chunk, int64_t pair, int64_t next) const {
    alignas(64) float sums[kChunkRows * kPair];
    const std::byte *slot = chunk.group->slot, *pairs = slot + at_.gate_up;
    multiply(chunk, pairs + pair * at_.gate_up_pair_bytes, pairs + next * at_.gate_up_pair_bytes,
             at_.hidden_inputs, x_, sums);
    kernels_.activate(spec_, bias_of(slot, at_.gate_up_bias, pair), chunk.rows(), sums);
    const int64_t outputs = outputs_of_pair(spec_), first = pair * outputs;
    if (first + outputs > spec_.intermediate)
      for (int64_t r = 0; r < chunk.rows(); ++r)
        std::fill(sums + r * kPair + (spec_.intermediate - first), sums + r * kPair + outputs,
                  0.0f);
    const float* rows = sums;
    for (int64_t t = chunk.first_tile; t < chunk.first_tile + chunk.tile_count; ++t) {
      const int64_t count = chunk.tiles.size(t);
      std::byte* tile = activations_ + (chunk.group_row + chunk.tiles.first_row(t)) *
                                           form_.row_bytes(at_.intermediate_inputs);
      if (form_.bf16)
        store_bf16(rows, count, first, outputs, reinterpret_cast<uint16_t*>(tile));
      else
        store_f32(rows, count, first, outputs, reinterpret_cast<float*>(tile));
      rows += count * kPair;
    }
  }

  // Outputs [first, first + outputs) of a tile's rows as inputs of the down projection.
  void store_f32(const float* from, int64_t rows, int64_t first, int64_t outputs,
                 float* tile) const {
    float* out = tile + first * rows;
    const int64_t kept = std::min(outputs, at_.intermediate_inputs - first);
    for (int64_t i = 0; i < kept; ++i)
      for (int64_t r = 0; r < rows; ++r) *out++ = from[r * kPair + i];
  }

  // The same, rounded; whoever writes the last ones writes the padding too.
  void store_bf16(const float* from, int64_t rows, int64_t first, int64_t outputs,
                  uint16_t* tile) const {
    const int64_t unit = form_.unit, padded = form_.padded(at_.intermediate_inputs);
    const int64_t end = first + outputs >= spec_.intermediate ? padded : first + outputs;
    if (end == first + outputs && outputs <= unit) {  // one piece, since both are powers of two
      uint16_t* out = tile + first / unit * rows * unit + first % unit;
      for (int64_t r = 0; r < rows; ++r)
        kernels_.bf16.round(from + r * kPair, outputs, out + r * unit);
      return;
    }
    const int64_t step = std::min(unit, outputs);
    for (int64_t r = 0; r < rows; ++r) {
      uint16_t rounded[kPair] = {};
      kernels_.bf16.round(from + r * kPair, outputs, rounded);
      for (int64_t i = first; i < end; i += step)
        std::memcpy(tile + (i / unit * rows + r) * unit + i % unit,
                    i - first < outputs ? rounded + (i - first) : kZeros,
                    static_cast<size_t>(std::min(step, end - i)) * sizeof(uint16_t));
    }
  }

  void down(int64_t task) const {
    int64_t run;
    const Chunk chunk = tasks_.chunk_of(task, down_runs_, &run);
    for (int64_t pair = down_runs_.begin(run); pair < down_runs_.begin(run + 1); ++pair)
      down(chunk, pair, pair + down_runs_.to_next(run, pair, threads_));
  }

  void down(const Chunk& chunk, int64_t pair, int64_t next) const {
    alignas(64) float sums[kChunkRows * kPair];
    const std::byte *slot = chunk.group->slot, *pairs = slot + at_.down;
    multiply(chunk, pairs + pair * at_.down_pair_bytes, pairs + next * at_.down_pair_bytes,
             at_.intermediate_inputs, activations_, sums);
    store_outputs(spec_, batch_, chunk, pair, bias_of(slot, at_.down_bias, pair), sums);
  }

  const float* bias_of(const std::byte* slot, int64_t section, int64_t pair) const {
    if (!spec_.bias) return nullptr;
    return reinterpret_cast<const float*>(slot + section) + pair * kPair;
  }

  static constexpr uint16_t kZeros[kPair] = {};

  const Kernels& kernels_;
  const int threads_;
  const ExpertSpec& spec_;
  const ExpertBatch& batch_;
  const Sections at_;
  const RowForm form_;
  void (*multiply_)(const Multiply&) = nullptr;
  const Workspace layout_;
  const TaskList tasks_;
  const Runs gate_up_runs_, down_runs_;
  std::byte* x_ = nullptr;            // (rows, hidden_inputs), tile by tile, as form_ says
  std::byte* activations_ = nullptr;  // (rows, intermediate_inputs), ditto
};

class CpuGemm final : public PassGemm {
 public:
  CpuGemm(const Kernels& kernels, RowPrecision rows) : kernels_(kernels), rows_(rows) {}

  const char* name() const noexcept override { return "cpu"; }

  Status supports(const ExpertSpec& spec) const override {
    MOE_RETURN_IF_ERROR(check_spec(spec));
    return spec.format.kind == FormatKind::fp8_block ? check_fp8(spec.format)
                                                     : check_float_format(spec, name());
  }

  SlotLayout layout(const ExpertSpec& spec) const override {
    Format packed = spec.format;
    packed.scale = DType::f32;  // whatever the source has: a slot's scales are f32
    return {"cpu-panels16-" + format_name(packed), static_cast<size_t>(sections(spec).bytes), 64};
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
    return static_cast<size_t>(Workspace(kernels_, sections(spec), pairs, groups).bytes);
  }

  double error_bound(const ExpertSpec& spec, DType hidden) const noexcept override {
    return takes_bf16_rows(kernels_, spec.format.kind, hidden, rows_) ? 5e-3 : 2e-6;
  }

  Status plan(const ExpertSpec& spec, const ExpertBatch& batch, PassSpace* pass) const override {
    MOE_RETURN_IF_ERROR(supports(spec));
    const int64_t pairs = pairs_in(batch), groups = static_cast<int64_t>(batch.groups.size());
    MOE_RETURN_IF_ERROR(check_cpu_batch(spec, batch, workspace_bytes(spec, pairs, groups, 1)));
    if (pairs > 0) pass->emplace<Run>(kernels_, rows_, spec, batch);
    return {};
  }

 private:
  // A 16-bit lane holds two inputs, which must have one scale.
  static Status check_fp8(const Format& format) {
    MOE_RETURN_IF_ERROR(check_format(format));
    if (format.group % 2 == 0) return {};
    return error(StatusCode::unimplemented, {.phase = Phase::plan},
                 "fp8 has a scale per {0} x {0} block; cpu computes from blocks of an even size",
                 format.group);
  }

  const Kernels& kernels_;
  const RowPrecision rows_;
};

}  // namespace

std::unique_ptr<ExpertGemm> make_gemm(const Kernels& kernels, RowPrecision rows) {
  return std::make_unique<CpuGemm>(kernels, rows);
}

}  // namespace moe::cpu

namespace moe {

std::unique_ptr<ExpertGemm> make_cpu_gemm(const ExpertGemmOptions& options) {
  return cpu::make_gemm(cpu::best_kernels(), options.rows);
}

}  // namespace moe
