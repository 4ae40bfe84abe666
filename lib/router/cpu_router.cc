#include "router/cpu_router.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "quant/half.h"
#include "router/kernels.h"

namespace moe {
namespace {

constexpr int64_t kChunkRows = 64;  // rows whose logits are in the workspace at once
constexpr int64_t kBlockRows = 16, kBlockCandidates = 8;  // of one piece of the matrix product
constexpr int64_t kSelectRows = 4;                        // of one piece of selecting
constexpr int64_t kSmall = 1 << 16;  // multiplications that are not worth waking threads for
constexpr size_t kAlignment = 64;

constexpr int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

Place place_of(const RouteInput& input) { return {.layer = input.layer, .phase = Phase::route}; }

// ---- workspace

// Hands out aligned arrays of the workspace; only counts if there is none.
class Arrays {
 public:
  explicit Arrays(std::byte* base) : base_(base) {}

  template <class T>
  T* take(int64_t count) {
    T* array = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return array;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

struct alignas(kAlignment) WorkerCounts {
  RouteCounts counts;
};

struct Workspace {
  float* logit_bias;        // (candidates), as the three below f32 whatever the weights are
  float* selection_bias;    // (candidates)
  float* per_expert_scale;  // (candidates)
  float* input_scale;       // (hidden)
  float* rows;              // (chunk, hidden)
  float* logits;            // (chunk, candidates)
  float* scratch;           // (concurrency, scratch_stride)
  int64_t scratch_stride;
  WorkerCounts* counts;  // (concurrency)
  int64_t* taken;        // (candidates): rows per expert so far, for the capacity
  size_t bytes;

  Workspace(const RouterSpec& spec, int64_t hidden, int64_t tokens, int concurrency,
            std::byte* base) {
    const int64_t candidates = spec.candidates(), chunk = std::min(tokens, kChunkRows);
    Arrays arrays(base);
    logit_bias = arrays.take<float>(candidates);
    selection_bias = arrays.take<float>(candidates);
    per_expert_scale = arrays.take<float>(candidates);
    input_scale = arrays.take<float>(hidden);
    rows = arrays.take<float>(chunk * hidden);
    logits = arrays.take<float>(chunk * candidates);
    scratch_stride = pieces(rule::scratch_floats(spec.candidates(), spec.num_groups), 16) * 16;
    scratch = arrays.take<float>(scratch_stride * concurrency);
    counts = arrays.take<WorkerCounts>(concurrency);
    taken = arrays.take<int64_t>(spec.capacity > 0 ? candidates : 0);
    bytes = arrays.used();
  }
};

// ---- checks

// (rows, columns) on the CPU, of a float type, `columns` < 0: any.
Status check_matrix(const RouteInput& input, const char* name, const TensorView& view,
                    int64_t columns) {
  if (view.shape.rank != 2 || view.shape[0] < 0 || (columns >= 0 && view.shape[1] != columns))
    return invalid_argument(
        place_of(input), "RouteInput.{} has shape ({}); it must be (tokens, {})", name,
        fmt::join(view.shape.extent, view.shape.extent + view.shape.rank, ", "), columns);
  if (!is_float(view.dtype))
    return invalid_argument(place_of(input), "RouteInput.{} is {}; it must be f32, bf16 or f16",
                            name, to_string(view.dtype));
  if (view.device.kind != DeviceKind::cpu)
    return invalid_argument(place_of(input), "RouteInput.{} is not in the CPU's memory", name);
  if (!view.data && view.shape.elements() > 0)
    return invalid_argument(place_of(input), "RouteInput.{} has shape ({}, {}) but no data", name,
                            view.shape[0], view.shape[1]);
  return {};
}

bool has_logits(const RouteInput& input) { return input.logits.shape.rank > 0; }

Status check_source(const RouterSpec& spec, const RouterWeights& weights, const RouteInput& input) {
  if (has_logits(input)) return check_matrix(input, "logits", input.logits, spec.candidates());
  if (!weights.weight.data)
    return invalid_argument(place_of(input),
                            "neither RouterWeights.weight nor RouteInput.logits is given; one of "
                            "them must be");
  return check_matrix(input, "hidden", input.hidden, weights.weight.shape[1]);
}

Status check_top_k(const RouterSpec& spec, const RouterWeights& weights, const RouteInput& input,
                   int32_t top_k) {
  int64_t most = spec.candidates();
  if (spec.selection == Selection::sparsemixer) most = 2;
  if (spec.selection == Selection::token_lookup) most = weights.token_experts.shape[1];
  if (top_k < 1 || top_k > most)
    return invalid_argument(place_of(input), "RouteInput.top_k is {}; it must lie in [1, {}]",
                            input.top_k, most);
  return {};
}

Status check_tokens(const RouterSpec& spec, const RouterWeights& weights, const RouteInput& input,
                    int64_t tokens) {
  if (spec.selection != Selection::token_lookup || tokens == 0) return {};
  if (!input.token_ids)
    return invalid_argument(place_of(input),
                            "RouteInput.token_ids is null; selection token_lookup needs it");
  const int64_t vocabulary = weights.token_experts.shape[0];
  for (int64_t t = 0; t < tokens; ++t)
    if (input.token_ids[t] < 0 || input.token_ids[t] >= vocabulary)
      return invalid_argument(place_of(input),
                              "RouteInput.token_ids[{}] is {}; it must lie in [0, {}]", t,
                              input.token_ids[t], vocabulary - 1);
  return {};
}

Status check_output(const RouteInput& input, const Routing& out, int64_t tokens, int32_t top_k) {
  if (out.tokens != tokens || out.top_k != top_k)
    return invalid_argument(place_of(input),
                            "Routing is for {} tokens and top_k {}; the input has {} and {}",
                            out.tokens, out.top_k, tokens, top_k);
  if (tokens > 0 && (!out.ids || !out.weights))
    return invalid_argument(place_of(input), "Routing.{} is null; the caller provides both arrays",
                            out.ids ? "weights" : "ids");
  return {};
}

Status check_workspace(const RouteInput& input, size_t needed) {
  if (input.workspace.size() < needed)
    return invalid_argument(place_of(input),
                            "RouteInput.workspace has {} bytes; workspace_bytes() is {}",
                            input.workspace.size(), needed);
  if (reinterpret_cast<uintptr_t>(input.workspace.data()) % kAlignment != 0)
    return invalid_argument(place_of(input), "RouteInput.workspace is not {}-byte aligned",
                            kAlignment);
  return {};
}

// ---- work

void load_vector(const TensorView& view, float* out) {
  if (view.data) load_row(view.dtype, view.data, 1, view.shape[0], out);
}

const void* row_of(const TensorView& matrix, int64_t row) {
  const int64_t bytes = bits_of(matrix.dtype) / 8;
  return static_cast<const std::byte*>(matrix.data) + row * matrix.strides[0] * bytes;
}

// One call of route_cpu(), cut into chunks of rows and these into pieces that workers share.
class Batch {
 public:
  Batch(const RouterSpec& spec, const RouterWeights& weights, const RouteInput& input,
        const Routing& out, const Workspace& work, int64_t hidden, int concurrency)
      : spec_(spec), input_(input), out_(out), work_(work), concurrency_(concurrency) {
    load_vector(weights.logit_bias, work.logit_bias);
    load_vector(weights.selection_bias, work.selection_bias);
    load_vector(weights.per_expert_scale, work.per_expert_scale);
    load_vector(weights.input_scale, work.input_scale);
    has_input_scale_ = weights.input_scale.data != nullptr;

    problem_.rows = work.rows;
    problem_.row_stride = problem_.hidden = hidden;
    problem_.weight = weights.weight.data;
    problem_.weight_type = weights.weight.dtype;
    problem_.weight_stride = weights.weight.strides[0];
    problem_.bias = weights.logit_bias.data ? work.logit_bias : nullptr;
    problem_.logits = work.logits;
    problem_.logits_stride = spec.candidates();

    rule_ = rule::make_rule(spec, out.top_k);
    if (weights.selection_bias.data) rule_.selection_bias = work.selection_bias;
    if (weights.per_expert_scale.data) rule_.per_expert_scale = work.per_expert_scale;
    rule_.token_experts = weights.token_experts.data;
    rule_.token_experts_wide = weights.token_experts.dtype == DType::i64;
    rule_.token_experts_stride = weights.token_experts.strides[0];
    rule_.vocabulary = weights.token_experts.shape[0];

    for (int worker = 0; worker < concurrency; ++worker) work.counts[worker] = {};
  }

  void route(RouteCounts* counts) {
    for (first_ = 0; first_ < out_.tokens; first_ += kChunkRows) {
      rows_ = std::min(kChunkRows, out_.tokens - first_);
      make_logits();
      run<&Batch::select_piece>(pieces(rows_, kSelectRows), rows_ * spec_.candidates() * 32);
    }
    RouteCounts sum;
    for (int worker = 0; worker < concurrency_; ++worker) {
      sum.nonfinite_rows += work_.counts[worker].counts.nonfinite_rows;
      sum.short_rows += work_.counts[worker].counts.short_rows;
    }
    if (spec_.capacity > 0) sum.dropped = drop_over_capacity();
    if (!counts) return;
    counts->nonfinite_rows += sum.nonfinite_rows;
    counts->short_rows += sum.short_rows;
    counts->dropped += sum.dropped;
  }

 private:
  // Runs the pieces [0, count) on the executor, or here if `work` multiplications are few.
  template <void (Batch::*piece)(int64_t, int)>
  void run(int64_t count, int64_t work) {
    if (!input_.executor || count == 1 || work < kSmall) {
      for (int64_t i = 0; i < count; ++i) (this->*piece)(i, 0);
      return;
    }
    input_.executor->run(
        count,
        [](void* batch, int64_t i, int worker) { (static_cast<Batch*>(batch)->*piece)(i, worker); },
        this);
  }

  void make_logits() {
    if (has_logits(input_)) return;
    const int64_t work = rows_ * problem_.hidden;
    run<&Batch::load_piece>(rows_, work);
    candidate_pieces_ = pieces(spec_.candidates(), kBlockCandidates);
    run<&Batch::logits_piece>(pieces(rows_, kBlockRows) * candidate_pieces_,
                              work * spec_.candidates());
  }

  void load_piece(int64_t r, int) {
    float* row = work_.rows + r * problem_.hidden;
    const TensorView& hidden = input_.hidden;
    load_row(hidden.dtype, row_of(hidden, first_ + r), hidden.strides[1], problem_.hidden, row);
    if (spec_.normalize_input) normalize(row);
  }

  // rmsnorm(x) * hidden^-0.5 * input_scale
  void normalize(float* row) const {
    double squares = 0;
    for (int64_t h = 0; h < problem_.hidden; ++h) squares += static_cast<double>(row[h]) * row[h];
    const double size = static_cast<double>(problem_.hidden);
    const double factor = 1 / std::sqrt((squares / size + spec_.input_norm_epsilon) * size);
    for (int64_t h = 0; h < problem_.hidden; ++h)
      row[h] = static_cast<float>(row[h] * factor * (has_input_scale_ ? work_.input_scale[h] : 1));
  }

  void logits_piece(int64_t i, int) {
    const int64_t row = i / candidate_pieces_ * kBlockRows;
    const int64_t candidate = i % candidate_pieces_ * kBlockCandidates;
    compute_logits(problem_, {row, std::min(row + kBlockRows, rows_), candidate,
                              std::min<int64_t>(candidate + kBlockCandidates, spec_.candidates())});
  }

  void select_piece(int64_t i, int worker) {
    const int64_t last = std::min((i + 1) * kSelectRows, rows_);
    for (int64_t r = i * kSelectRows; r < last; ++r) select(r, worker);
  }

  void select(int64_t r, int worker) {
    const int64_t token = first_ + r, candidates = spec_.candidates();
    float* logits = work_.logits + r * candidates;
    if (has_logits(input_))
      load_row(input_.logits.dtype, row_of(input_.logits, token), input_.logits.strides[1],
               candidates, logits);
    rule::Row row{.logits = logits,
                  .mask = input_.expert_mask ? input_.expert_mask + token * candidates : nullptr,
                  .token = input_.token_ids ? input_.token_ids[token] : 0,
                  .ids = out_.ids + token * out_.top_k,
                  .weights = out_.weights + token * out_.top_k};
    const rule::Outcome outcome =
        select_row(rule_, row, work_.scratch + worker * work_.scratch_stride);
    RouteCounts& counts = work_.counts[worker].counts;
    counts.nonfinite_rows += outcome.nonfinite;
    counts.short_rows += outcome.chosen < out_.top_k;
  }

  // In row order, and place order within a row.
  int64_t drop_over_capacity() {
    std::fill_n(work_.taken, spec_.candidates(), 0);
    int64_t dropped = 0;
    for (int64_t pair = 0; pair < out_.tokens * out_.top_k; ++pair) {
      if (out_.ids[pair] < 0 || ++work_.taken[out_.ids[pair]] <= spec_.capacity) continue;
      out_.ids[pair] = -1;
      out_.weights[pair] = 0;
      ++dropped;
    }
    return dropped;
  }

  const RouterSpec& spec_;
  const RouteInput& input_;
  const Routing& out_;
  const Workspace& work_;
  const int concurrency_;
  LogitsProblem problem_;
  rule::Rule rule_;
  bool has_input_scale_ = false;

  int64_t first_ = 0, rows_ = 0;  // the chunk
  int64_t candidate_pieces_ = 0;
};

}  // namespace

size_t route_workspace_bytes(const RouterSpec& spec, int64_t hidden, int64_t tokens,
                             int concurrency) noexcept {
  return Workspace(spec, hidden, tokens, concurrency, nullptr).bytes;
}

Status route_cpu(const RouterSpec& spec, const RouterWeights& weights, const RouteInput& input,
                 const Routing& out, RouteCounts* counts) {
  MOE_RETURN_IF_ERROR(check_shapes(spec, weights).at(place_of(input)));
  MOE_RETURN_IF_ERROR(check_source(spec, weights, input));
  const int64_t tokens = has_logits(input) ? input.logits.shape[0] : input.hidden.shape[0];
  const int32_t top_k = input.top_k == 0 ? spec.top_k : input.top_k;
  MOE_RETURN_IF_ERROR(check_top_k(spec, weights, input, top_k));
  MOE_RETURN_IF_ERROR(check_output(input, out, tokens, top_k));
  MOE_RETURN_IF_ERROR(check_tokens(spec, weights, input, tokens));
  if (input.stream.device.kind != DeviceKind::cpu)
    return invalid_argument(place_of(input), "RouteInput.stream is not the CPU's");

  if (tokens == 0) return {};

  const int64_t hidden = has_logits(input) ? 0 : weights.weight.shape[1];
  const int concurrency = input.executor ? input.executor->concurrency() : 1;
  const Workspace work(spec, hidden, tokens, concurrency, input.workspace.data());
  MOE_RETURN_IF_ERROR(check_workspace(input, work.bytes));
  Batch(spec, weights, input, out, work, hidden, concurrency).route(counts);
  return {};
}

}  // namespace moe
