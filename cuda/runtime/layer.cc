#include "runtime/layer.h"

#include <algorithm>

#include "gemm/decode.h"
#include "gemm/few_tiles.h"
#include "permute/combine.h"
#include "permute/copy_rows.h"
#include "router/logits.h"
#include "router/matrix_logits.h"
#include "router/route_few.h"
#include "router/routing.h"
#include "router/topk.h"
#include "runtime/tensor_map.h"

namespace moe::cuda {
namespace {

// Columns of the GEMMs' rows: hidden, rounded up to what every network reads.
int64_t width_of(const LayerShape& shape) {
  const int64_t routed = slot_sections(shape.routed).hidden_stride;
  return shape.shared.hidden == 0 ? routed
                                  : std::max(routed, slot_sections(shape.shared).hidden_stride);
}

// Workspace of one layer; pointers into LayerArgs::workspace. A part that the shape has no use for
// is empty.
struct Workspace {
  int32_t* ids;
  float* weights;
  int32_t* row_token;
  int32_t* row_of_pair;
  TokenTile* tiles;
  int32_t* tile_count;
  int32_t* chunk_rows;       // of PermuteArgs
  uint32_t* few_counters;    // of FewArgs
  __nv_bfloat16* activated;  // (pairs, intermediate'), or in e4m3
  __nv_bfloat16* rows;       // (pairs, width)
  __nv_bfloat16* gathered;   // the same memory: read before rows is written; its own with waves
  float* gathered_scales;    // (scale_blocks(hidden), pairs), fp8
  float* activated_scales;   // (scale_blocks(intermediate), pairs), fp8

  ForwardNote* note;
  int32_t* slots;           // (candidates)
  float* selection_bias;    // (candidates)
  float* per_expert_scale;  // (candidates)
  float* logits;            // (tokens, candidates)
  __nv_bfloat16* cast;      // (tokens, width)

  TokenTile* shared_tiles;
  int32_t* shared_tile_count;
  __nv_bfloat16* shared_activated;  // (tokens, intermediate'), or in e4m3
  __nv_bfloat16* shared_rows;       // (tokens, width), before that quantised rows
  float* shared_row_scales;         // (scale_blocks(hidden), tokens), fp8
  float* shared_activated_scales;   // (scale_blocks(intermediate), tokens), fp8
  float* shared_gate;               // (tokens)
  size_t bytes;

  Workspace(std::byte* base, const LayerShape& shape, int64_t tokens, int32_t top_k) {
    const int64_t pairs = tokens * top_k, candidates = shape.num_experts;
    const SlotSections routed = slot_sections(shape.routed);
    const int64_t width = width_of(shape);
    size_t at = 0;
    auto take = [&](auto** out, int64_t count) {
      *out = reinterpret_cast<std::remove_reference_t<decltype(*out)>>(base + at);
      at += (static_cast<size_t>(count) * sizeof(**out) + 255) / 256 * 256;
    };
    take(&ids, pairs);
    take(&weights, pairs);
    take(&row_token, pairs);
    take(&row_of_pair, pairs);
    take(&tiles, max_tiles(pairs, candidates, kDecodeTokens));
    take(&tile_count, 1);
    take(&chunk_rows, num_chunks(tokens) * candidates);
    take(&few_counters, cuda::few_counters(shape.routed.hidden, pairs));
    take(&activated, pairs * routed.intermediate_stride);
    take(&rows, pairs * width);
    gathered = rows;
    if (shape.paged && shape.weights_on_input) take(&gathered, pairs * width);
    take(&gathered_scales, scales(shape.routed, shape.routed.hidden, pairs));
    take(&activated_scales, scales(shape.routed, shape.routed.intermediate, pairs));

    const auto if_table = [&](int64_t count) { return shape.from_table ? count : 0; };
    take(&note, if_table(1));
    take(&slots, if_table(candidates));
    take(&selection_bias, if_table(candidates));
    take(&per_expert_scale, if_table(candidates));
    take(&logits, if_table(tokens * candidates));
    take(&cast, if_table(tokens * width));

    const bool shared = shape.shared.hidden > 0;
    const auto if_shared = [&](int64_t count) { return shared ? count : 0; };
    take(&shared_tiles, if_shared(max_tiles(tokens, 1, kDecodeTokens)));
    take(&shared_tile_count, if_shared(1));
    take(&shared_activated, if_shared(tokens * slot_sections(shape.shared).intermediate_stride));
    take(&shared_rows, if_shared(tokens * width));
    take(&shared_row_scales, if_shared(scales(shape.shared, shape.routed.hidden, tokens)));
    take(&shared_activated_scales,
         if_shared(scales(shape.shared, shape.shared.intermediate, tokens)));
    take(&shared_gate, if_shared(tokens));
    bytes = at;
  }

 private:
  // Of rows that meet fp8 weights.
  static int64_t scales(const SlotShape& shape, int64_t columns, int64_t rows) {
    return shape.element_bytes == 1 ? scale_blocks(columns) * rows : 0;
  }
};

// What the GEMMs of a network multiply, and in which tiles.
struct Kernels {
  Operands operands;
  TileClass size;
  int32_t tile_tokens() const { return cuda::tile_tokens(size, operands); }
};

// `plain_rows`: nothing quantises the rows on their way.
Kernels choose_kernels(const Network& n, TileClass size, bool plain_rows) {
  const SlotShape& shape = n.pool.shape;
  if (shape.element_bytes == 2) return {Operands::bf16, size};
  const bool accepted = n.rows == RowPrecision::fast ||
                        (n.rows == RowPrecision::automatic && size != TileClass::small);
  if (accepted && shape.gated && !plain_rows)
    return {Operands::w8a8, size == TileClass::small ? TileClass::medium : size};
  return {Operands::w8a16, size == TileClass::large ? TileClass::medium : size};
}

// One forward: what it was asked for, cut and chosen.
struct Forward {
  const LayerArgs& args;
  Workspace work;
  int64_t pairs;
  int64_t width;  // columns of the GEMMs' rows
  Kernels kernels;
  Kernels shared_kernels;
  bool direct;                // the GEMMs can read args.hidden as it is
  bool few;                   // all before the experts is one kernel
  const FewKernel* after;     // all after that, in one or two; null: not
  const __nv_bfloat16* rows;  // (tokens, width): what the GEMMs read

  explicit Forward(const LayerArgs& a)
      : args(a), work(a.workspace, shape_of(a), a.tokens, a.top_k), pairs(a.tokens * a.top_k) {
    const int64_t experts = a.pool.num_experts, hidden = a.pool.shape.hidden;
    width = width_of(shape_of(a));
    few = a.tokens <= kMaxFewTokens && !a.paged && !a.batch_invariant;
    TileClass size = a.size >= 0 ? static_cast<TileClass>(a.size)
                     : few       ? TileClass::small
                                 : choose_tile_class(a.tokens, a.top_k, experts);
    if (a.paged && !gathers(size)) size = TileClass::medium;
    TileClass shared_size = few ? TileClass::small : choose_tile_class(a.tokens, 1, 1);
    if (!a.kernel->copy_engine) {
      size = std::min(size, TileClass::medium);
      shared_size = std::min(shared_size, TileClass::medium);
    }
    kernels = choose_kernels(a, size, a.paged || a.weights_on_input);
    if (a.shared) shared_kernels = choose_kernels(*a.shared, shared_size, false);
    direct = a.hidden.type == DType::bf16 && hidden == width && a.hidden.stride == hidden &&
             aligned_by_8(a.hidden);
    rows = direct ? static_cast<const __nv_bfloat16*>(a.hidden.data) : work.cast;
    after = choose_after();
  }

  int32_t tile_tokens() const { return after ? after->tile_tokens : kernels.tile_tokens(); }
  int32_t shared_tile_tokens() const {
    return after ? after->tile_tokens : shared_kernels.tile_tokens();
  }
  static LayerShape shape_of(const LayerArgs& a) {
    return {.routed = a.pool.shape,
            .num_experts = a.pool.num_experts,
            .shared = a.shared ? a.shared->pool.shape : SlotShape{.hidden = 0},
            .from_table = a.reader != nullptr,
            .weights_on_input = a.weights_on_input,
            .paged = a.paged};
  }
  const FewKernel* choose_after() const;
  const ForwardNote* note() const { return args.reader ? work.note : nullptr; }
  const int64_t* valid_rows() const { return args.reader ? &work.note->rows : nullptr; }
  const int32_t* slots() const { return args.reader ? work.slots : args.pool.slot_of_expert; }
};

// ---- routing

BeginArgs begin_args(const Forward& f) {
  const LayerArgs& args = f.args;
  BeginArgs begin;
  if (!args.reader) return begin;
  begin.counters = args.reader->counters;
  begin.cell = args.reader->cell;
  begin.tokens = args.tokens;
  begin.valid_rows = args.reader->valid_rows;
  begin.note = f.work.note;
  begin.slots = f.work.slots;
  begin.selection_bias = f.work.selection_bias;
  begin.per_expert_scale = f.work.per_expert_scale;
  begin.candidates = args.pool.num_experts;
  if (args.shared) {
    begin.shared_tiles = f.work.shared_tiles;
    begin.shared_tile_count = f.work.shared_tile_count;
    begin.tile_tokens = f.shared_tile_tokens();
  }
  return begin;
}

RoutingArgs routing_args(const Forward& f) {
  return {
      f.args.tokens, f.args.top_k,  f.args.pool.num_experts, f.args.reader ? f.work.note : nullptr,
      f.work.ids,    f.work.weights};
}

LogitsArgs logits_args(const Forward& f) {
  LogitsArgs router;
  router.begin = begin_args(f);
  router.rows = f.args.router_rows;
  router.hidden = f.args.pool.shape.hidden;
  router.logits = f.work.logits;
  router.batch_invariant = f.args.batch_invariant;
  router.normalize = f.args.normalize_input;
  router.epsilon = f.args.input_norm_epsilon;
  return router;
}

bool dense(const LayerArgs& args) {
  return args.logits.type == DType::f32 && args.logits.stride == args.pool.num_experts;
}

// Begins the forward; f32 logits of every row: the host's own if they are that already.
cudaError_t enqueue_logits(const Forward& f, const float** logits, cudaStream_t stream) {
  const LayerArgs& args = f.args;
  *logits = f.work.logits;
  if (args.logits.data) {
    const cudaError_t error = args.reader ? launch_begin(begin_args(f), stream) : cudaSuccess;
    if (dense(args)) *logits = static_cast<const float*>(args.logits.data);
    if (dense(args) || error != cudaSuccess) return error;
    return launch_widen(args.logits, routing_args(f), f.work.logits, stream);
  }
  const LogitsArgs router = logits_args(f);
  constexpr int64_t kFew = 512;  // rows for which a block a candidate is faster
  const bool many = args.tokens > kFew || args.batch_invariant;
  if (args.reader->bf16_router && many && fits_matrix_units(router))
    return launch_matrix_logits(router, stream);
  return launch_logits(router, stream);
}

TopKArgs topk_args(const Forward& f, const float* logits) {
  const LayerArgs& args = f.args;
  TopKArgs topk;
  topk.rule = args.rule;
  topk.rule.candidates = args.pool.num_experts;
  topk.rule.top_k = args.top_k;
  if (args.reader) {
    if (args.reader->has_selection_bias) topk.rule.selection_bias = f.work.selection_bias;
    if (args.reader->has_per_expert_scale) topk.rule.per_expert_scale = f.work.per_expert_scale;
    if (args.rule.selection == Selection::token_lookup)
      topk.token_experts = &f.work.note->table.block.token_experts;
    topk.counts = &f.work.note->counts;
  }
  topk.logits = logits;
  topk.tokens = args.tokens;
  topk.mask = args.mask;
  topk.token_ids = args.token_ids;
  topk.valid_rows = f.valid_rows();
  topk.chunk_rows = f.work.chunk_rows;
  topk.ids = f.work.ids;
  topk.weights = f.work.weights;
  return topk;
}

PermuteArgs permute_args(const Forward& f) {
  const LayerArgs& args = f.args;
  PermuteArgs permute;
  permute.ids = f.work.ids;
  permute.tokens = args.tokens;
  permute.top_k = args.top_k;
  permute.num_experts = args.pool.num_experts;
  permute.slot_of_expert = f.slots();
  permute.tile_tokens = f.tile_tokens();
  permute.row_token = f.work.row_token;
  permute.row_of_pair = f.work.row_of_pair;
  permute.tiles = f.work.tiles;
  permute.tile_count = f.work.tile_count;
  permute.expert_rows = args.expert_rows;
  permute.chunk_rows = f.work.chunk_rows;
  permute.capacity = args.capacity;
  permute.weights = f.work.weights;
  permute.note = args.reader ? f.work.note : nullptr;
  permute.ids_out = args.ids_out;
  permute.weights_out = args.weights_out;
  return permute;
}

// The rows as the GEMMs read them, where those of the host are not.
CopyRowsArgs cast_args(const Forward& f) {
  CopyRowsArgs cast;
  cast.from = f.args.hidden;
  cast.columns = f.args.pool.shape.hidden;
  cast.tokens = f.args.tokens;
  cast.note = f.note();
  if (!f.direct) cast.to = f.work.cast;
  cast.hidden = f.width;
  return cast;
}

cudaError_t enqueue_choice(const Forward& f, cudaStream_t stream) {
  const LayerArgs& args = f.args;
  cudaError_t error = cudaSuccess;
  if (args.ids_in) {
    error = launch_begin(begin_args(f), stream);
    if (error != cudaSuccess) return error;
    return launch_replay(routing_args(f), args.ids_in, args.weights_in, f.work.chunk_rows, stream);
  }
  const float* logits = nullptr;
  error = enqueue_logits(f, &logits, stream);
  if (error != cudaSuccess) return error;
  return launch_topk(topk_args(f, logits), stream);
}

// All that comes before the experts, in one kernel.
cudaError_t enqueue_few(const Forward& f, cudaStream_t stream) {
  const LayerArgs& args = f.args;
  RouteFewArgs route;
  route.ids_in = args.ids_in;
  route.weights_in = args.weights_in;
  route.logits_in = args.logits;
  route.router = logits_args(f);
  if (args.logits.data) route.router.rows = {};
  route.topk = topk_args(f, dense(args) ? static_cast<const float*>(args.logits.data) : nullptr);
  if (args.reader) {
    route.has_selection_bias = args.reader->has_selection_bias;
    route.has_per_expert_scale = args.reader->has_per_expert_scale;
  }
  route.capacity = args.capacity;
  route.ids_out = args.ids_out;
  route.weights_out = args.weights_out;
  route.groups = permute_args(f);
  route.cast = cast_args(f);
  if (args.shared && args.shared->gated_by_row) route.shared_gate = f.work.shared_gate;
  if (f.after) {
    route.counters = f.work.few_counters;
    route.num_counters = few_counters(args.pool.shape.hidden, f.pairs);
  }
  return launch_route_few(route, stream);
}

// ---- experts

// Token rows as the copy engine sees them.
struct RowMaps {
  bool copy = false;  // rows are copied into permuted order first
  CUtensorMap copied = {}, activated = {};
};

// Rows that `kernels` read: (count, columns).
cudaError_t row_map(const void* base, int64_t columns, int64_t count, const Kernels& kernels,
                    CUtensorMap* to) {
  const int32_t bytes = kernels.operands == Operands::w8a8 ? 1 : 2;
  return make_tensor_map({static_cast<const std::byte*>(base), columns, count, 1, columns * bytes,
                          count * columns * bytes, bytes},
                         token_box(kernels.size), to);
}

cudaError_t make_row_maps(const Forward& f, RowMaps* out) {
  const LayerArgs& args = f.args;
  const bool pays = args.gather >= 0
                        ? args.gather
                        : args.kernel->copy_engine &&
                              choose_gather(args.tokens, args.top_k, args.pool.num_experts);
  out->copy = (pays && !args.paged) || !gathers(f.kernels.size) || args.weights_on_input ||
              f.kernels.operands == Operands::w8a8;
  if (!args.kernel->copy_engine) return cudaSuccess;
  const cudaError_t error = row_map(f.work.gathered, f.width, f.pairs, f.kernels, &out->copied);
  if (error != cudaSuccess) return error;
  return row_map(f.work.activated, args.pool.sections.intermediate_stride, f.pairs, f.kernels,
                 &out->activated);
}

// What both GEMMs of a network take, but for rows and output.
GroupedGemmArgs gate_up(const Network& n) {
  const SlotSections& sections = n.pool.sections;
  GroupedGemmArgs gemm = {};
  if (n.maps) gemm.weights = n.maps->gate_up;
  gemm.weight_base = n.pool.base + sections.gate_up;
  gemm.weight_rows = (n.pool.shape.gated ? 2 : 1) * sections.intermediate_stride;
  gemm.depth = sections.hidden_stride;
  gemm.weight_scales = n.pool.base + sections.gate_up_scale;
  if (n.pool.shape.bias) gemm.bias = n.pool.base + sections.gate_up_bias;
  gemm.slot_bytes = n.pool.slot_bytes;
  gemm.out_stride = gemm.out_columns = sections.intermediate_stride;
  gemm.activated = n.pool.shape.gated;
  gemm.unary = !n.pool.shape.gated;
  gemm.activation = n.activation;
  gemm.alpha = n.alpha;
  gemm.limit = n.limit;
  return gemm;
}

GroupedGemmArgs down(const Network& n, int64_t width) {
  const SlotSections& sections = n.pool.sections;
  GroupedGemmArgs gemm = {};
  if (n.maps) gemm.weights = n.maps->down;
  gemm.weight_base = n.pool.base + sections.down;
  gemm.weight_rows = n.pool.shape.hidden;
  gemm.depth = sections.intermediate_stride;
  gemm.weight_scales = n.pool.base + sections.down_scale;
  if (n.pool.shape.bias) gemm.bias = n.pool.base + sections.down_bias;
  gemm.slot_bytes = n.pool.slot_bytes;
  gemm.out_stride = width;
  gemm.out_columns = sections.hidden_stride;
  gemm.weights_early = 1;
  return gemm;
}

// The rows in permuted order.
CopyRowsArgs copy_args(const Forward& f) {
  CopyRowsArgs copy = cast_args(f);
  copy.row_of_pair = f.work.row_of_pair;
  copy.top_k = f.args.top_k;
  copy.to = f.work.gathered;
  if (f.args.weights_on_input) {
    copy.weights = f.work.weights;
  } else if (f.kernels.operands == Operands::w8a8) {
    copy.scales = f.work.gathered_scales;
    copy.scale_stride = f.pairs;
  }
  return copy;
}

// What every wave starts with; few rows are permuted already.
cudaError_t enqueue_permute(const Forward& f, bool copies, cudaStream_t stream) {
  if (f.few) return copies ? launch_copy_rows(copy_args(f), stream) : cudaSuccess;
  PermuteArgs permute = permute_args(f);
  if (!f.args.paged) permute.cast = cast_args(f);
  if (copies) permute.copy = copy_args(f);
  return launch_permute(permute, stream);
}

cudaError_t enqueue_routed(const Forward& f, cudaStream_t stream) {
  const LayerArgs& args = f.args;
  RowMaps maps;
  cudaError_t error = make_row_maps(f, &maps);
  if (error == cudaSuccess) error = enqueue_permute(f, maps.copy, stream);
  if (error != cudaSuccess) return error;

  const auto [operands, size] = f.kernels;
  const int64_t tiles = max_tiles(f.pairs, args.pool.num_experts, f.kernels.tile_tokens());
  GroupedGemmArgs gemm = gate_up(args);
  gemm.operands = operands;
  gemm.batch_invariant = f.args.batch_invariant;
  gemm.tiles = f.work.tiles;
  gemm.tile_count = f.work.tile_count;
  gemm.row_scales = f.work.gathered_scales;
  gemm.row_scale_stride = gemm.out_scale_stride = f.pairs;
  gemm.out = f.work.activated;
  gemm.out_scales = f.work.activated_scales;
  gemm.rows = maps.copied;
  gemm.row_base = reinterpret_cast<const std::byte*>(maps.copy ? f.work.gathered : f.rows);
  gemm.row_bytes = f.width * 2;
  if (!maps.copy) gemm.row_index = f.work.row_token;
  error = args.kernel->launch(size, gemm, tiles, args.multiprocessors, stream);
  if (error != cudaSuccess) return error;
  gemm = down(args, f.width);
  gemm.operands = operands;
  gemm.batch_invariant = f.args.batch_invariant;
  gemm.tiles = f.work.tiles;
  gemm.tile_count = f.work.tile_count;
  gemm.rows = maps.activated;
  gemm.row_base = reinterpret_cast<const std::byte*>(f.work.activated);
  gemm.row_bytes = args.pool.sections.intermediate_stride * 2;
  gemm.row_scales = f.work.activated_scales;
  gemm.row_scale_stride = f.pairs;
  gemm.out = f.work.rows;
  return args.kernel->launch(size, gemm, tiles, args.multiprocessors, stream);
}

// ---- the shared expert and the sum

// The rows of the shared expert in e4m3.
cudaError_t enqueue_shared_copy(const Forward& f, cudaStream_t stream) {
  CopyRowsArgs copy;
  copy.from = {f.rows, DType::bf16, f.width};
  copy.tokens = copy.scale_stride = f.args.tokens;
  copy.columns = copy.hidden = f.width;
  copy.note = f.note();
  copy.to = f.work.shared_rows;
  copy.scales = f.work.shared_row_scales;
  return launch_copy_rows(copy, stream);
}

cudaError_t enqueue_shared(const Forward& f, cudaStream_t stream) {
  const SharedNetwork& shared = *f.args.shared;
  const auto [operands, size] = f.shared_kernels;
  const int64_t tokens = f.args.tokens;
  const int64_t intermediate = shared.pool.sections.intermediate_stride;
  const bool copy = operands == Operands::w8a8;
  CUtensorMap rows = {}, activated = {};
  cudaError_t error = cudaSuccess;
  if (shared.kernel->copy_engine)
    error = row_map(copy ? f.work.shared_rows : f.rows, f.width, tokens, f.shared_kernels, &rows);
  if (shared.kernel->copy_engine && error == cudaSuccess)
    error = row_map(f.work.shared_activated, intermediate, tokens, f.shared_kernels, &activated);
  if (error == cudaSuccess && shared.gated_by_row && !f.few)
    error = launch_shared_gate(
        {f.args.hidden, tokens, f.args.pool.shape.hidden, f.work.note, f.work.shared_gate}, stream);
  if (error == cudaSuccess && copy) error = enqueue_shared_copy(f, stream);
  if (error != cudaSuccess) return error;

  const int64_t tiles = max_tiles(tokens, 1, f.shared_kernels.tile_tokens());
  GroupedGemmArgs gemm = gate_up(shared);
  gemm.operands = operands;
  gemm.batch_invariant = f.args.batch_invariant;
  gemm.tiles = f.work.shared_tiles;
  gemm.tile_count = f.work.shared_tile_count;
  gemm.rows = rows;
  gemm.row_base = reinterpret_cast<const std::byte*>(f.rows);
  gemm.row_bytes = f.width * 2;
  gemm.row_scales = f.work.shared_row_scales;
  gemm.row_scale_stride = gemm.out_scale_stride = tokens;
  gemm.out = f.work.shared_activated;
  gemm.out_scales = f.work.shared_activated_scales;
  error = shared.kernel->launch(size, gemm, tiles, f.args.multiprocessors, stream);
  if (error != cudaSuccess) return error;
  gemm = down(shared, f.width);
  gemm.operands = operands;
  gemm.batch_invariant = f.args.batch_invariant;
  gemm.tiles = f.work.shared_tiles;
  gemm.tile_count = f.work.shared_tile_count;
  gemm.rows = activated;
  gemm.row_base = reinterpret_cast<const std::byte*>(f.work.shared_activated);
  gemm.row_bytes = intermediate * 2;
  gemm.row_scales = f.work.shared_activated_scales;
  gemm.row_scale_stride = tokens;
  gemm.out = f.work.shared_rows;
  return shared.kernel->launch(size, gemm, tiles, f.args.multiprocessors, stream);
}

CombineArgs sum_args(const Forward& f) {
  const LayerArgs& args = f.args;
  CombineArgs sum;
  sum.rows = f.work.rows;
  sum.row_stride = f.width;
  sum.row_of_pair = f.work.row_of_pair;
  if (args.zero_experts > 0) sum.ids = f.work.ids;
  sum.weights = f.work.weights;
  sum.weights_on_input = args.weights_on_input;
  sum.num_experts = args.pool.num_experts - args.zero_experts;
  sum.tokens = args.tokens;
  sum.top_k = args.top_k;
  sum.hidden = args.pool.shape.hidden;
  sum.routed_scale = args.routed_scale;
  if (args.shared) {
    sum.shared = f.work.shared_rows;
    sum.shared_scale = args.shared->scale;
    if (args.shared->gated_by_row) sum.shared_gate = f.work.shared_gate;
  }
  sum.from = args.hidden;
  sum.out = args.out;
  sum.accumulate = args.accumulate;
  sum.note = f.note();
  if (args.reader)
    sum.finish = {args.paged ? nullptr : args.reader->counters, f.work.note, args.reader->report,
                  args.reader->totals};
  return sum;
}

// ---- few rows: the experts, the shared one and the sum in one or two kernels

FewArgs few_args(const Forward& f) {
  const LayerArgs& args = f.args;
  FewArgs few;
  const auto add = [&](int i, const Network& n, Operands operands, __nv_bfloat16* activated,
                       __nv_bfloat16* rows, const TokenTile* tiles, const int32_t* tile_count) {
    GroupedGemmArgs& first = few.gate_up[i] = gate_up(n);
    first.row_base = reinterpret_cast<const std::byte*>(f.rows);
    first.row_bytes = f.width * 2;
    first.out = activated;
    GroupedGemmArgs& second = few.down[i] = down(n, f.width);
    second.row_base = reinterpret_cast<const std::byte*>(activated);
    second.row_bytes = n.pool.sections.intermediate_stride * 2;
    second.out = rows;
    for (GroupedGemmArgs* gemm : {&first, &second}) {
      gemm->operands = operands;
      gemm->tiles = tiles;
      gemm->tile_count = tile_count;
    }
  };
  add(0, args, f.kernels.operands, f.work.activated, f.work.rows, f.work.tiles, f.work.tile_count);
  few.gate_up[0].row_index = f.work.row_token;
  if (args.shared)
    add(1, *args.shared, f.shared_kernels.operands, f.work.shared_activated, f.work.shared_rows,
        f.work.shared_tiles, f.work.shared_tile_count);
  few.sum = sum_args(f);
  few.counters = f.work.few_counters;
  return few;
}

const FewKernel* Forward::choose_after() const {
  if (!few || args.size >= 0 || args.gather >= 0) return nullptr;
  if (args.shared && args.shared->kernel != args.kernel) return nullptr;
  const FewArgs all = few_args(*this);
  const auto serves = [&](const FewKernel* k) { return k && k->fits(all, args.multiprocessors); };
  const bool decode =
      args.decode < 0 ? choose_decode(args.tokens, args.top_k * args.pool.slot_bytes) : args.decode;
  if (decode && serves(args.kernel->decode)) return args.kernel->decode;
  return args.few_tiles != 0 && serves(args.kernel->few_tiles) ? args.kernel->few_tiles : nullptr;
}

bool valid(const LayerArgs& args) {
  if (args.reader) return true;
  const bool extras = args.shared || args.capacity > 0 || args.ids_in || args.weights_on_input;
  return !extras && args.logits.type == DType::f32 && Forward(args).direct;
}

}  // namespace

cudaError_t make_pool_maps(const ExpertPool& pool, PoolMaps* out) {
  const SlotSections& s = pool.sections;
  const int32_t bytes = pool.shape.element_bytes;
  const PoolMatrix gate_up = {pool.base + s.gate_up,
                              s.hidden_stride,
                              (pool.shape.gated ? 2 : 1) * s.intermediate_stride,
                              pool.slots,
                              s.hidden_stride * bytes,
                              pool.slot_bytes,
                              bytes};
  const PoolMatrix down = {pool.base + s.down,
                           s.intermediate_stride,
                           pool.shape.hidden,
                           pool.slots,
                           s.intermediate_stride * bytes,
                           pool.slot_bytes,
                           bytes};
  const cudaError_t error = make_tensor_map(gate_up, kTileRows, &out->gate_up);
  return error == cudaSuccess ? make_tensor_map(down, kTileRows, &out->down) : error;
}

size_t layer_workspace_bytes(const LayerShape& shape, int64_t tokens, int32_t top_k) {
  return Workspace(nullptr, shape, tokens, top_k).bytes;
}

cudaError_t enqueue_route(const LayerArgs& args, cudaStream_t stream) {
  if (!valid(args)) return cudaErrorInvalidValue;
  const Forward f(args);
  if (f.few) return enqueue_few(f, stream);
  cudaError_t error = enqueue_choice(f, stream);
  if (error != cudaSuccess || !args.paged) return error;
  // What waves read has to be there before the first one, whose ids the host reads.
  PermuteArgs permute = permute_args(f);
  permute.expert_rows = nullptr;
  permute.cast = cast_args(f);
  error = launch_permute(permute, stream);
  return error == cudaSuccess ? launch_leave(args.reader->counters, stream) : error;
}

cudaError_t enqueue_experts(const LayerArgs& args, cudaStream_t stream) {
  const Forward f(args);
  return f.after ? f.after->launch(few_args(f), args.multiprocessors, stream)
                 : enqueue_routed(f, stream);
}

cudaError_t enqueue_rest(const LayerArgs& args, cudaStream_t stream) {
  const Forward f(args);
  if (f.after) return cudaSuccess;
  const cudaError_t error = args.shared ? enqueue_shared(f, stream) : cudaSuccess;
  return error == cudaSuccess ? launch_combine(sum_args(f), stream) : error;
}

cudaError_t enqueue_layer(const LayerArgs& args, cudaStream_t stream) {
  const bool valid = args.tokens >= 0 && args.top_k > 0 && args.pool.num_experts > 0 &&
                     args.pool.shape.hidden > 0 && args.pool.shape.intermediate > 0;
  if (!valid) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  cudaError_t error = enqueue_route(args, stream);
  if (error == cudaSuccess) error = enqueue_experts(args, stream);
  return error == cudaSuccess ? enqueue_rest(args, stream) : error;
}

int32_t* workspace_slots(const LayerArgs& args) { return Forward(args).work.slots; }
const int32_t* workspace_ids(const LayerArgs& args) { return Forward(args).work.ids; }

}  // namespace moe::cuda
