#include "runtime/layer.h"

#include "permute/combine.h"
#include "permute/gather.h"
#include "router/topk.h"
#include "runtime/tensor_map.h"

namespace moe::cuda {
namespace {

// Workspace of one layer; pointers into LayerArgs::workspace.
struct Workspace {
  int32_t* ids;
  float* weights;
  int32_t* row_token;
  int32_t* row_of_pair;
  TokenTile* tiles;
  int32_t* tile_count;
  __nv_bfloat16* activated;  // (pairs, intermediate')
  __nv_bfloat16* rows;       // (pairs, hidden)
  __nv_bfloat16* gathered;   // the same memory: read before rows is written
  size_t bytes;

  Workspace(std::byte* base, const SlotShape& shape, int64_t num_experts, int64_t tokens,
            int32_t top_k) {
    const int64_t pairs = tokens * top_k;
    size_t at = 0;
    auto take = [&](auto** out, int64_t count) {
      *out = reinterpret_cast<std::remove_reference_t<decltype(*out)>>(base + at);
      at += (count * sizeof(**out) + 255) / 256 * 256;
    };
    take(&ids, pairs);
    take(&weights, pairs);
    take(&row_token, pairs);
    take(&row_of_pair, pairs);
    take(&tiles, max_tiles(pairs, num_experts, tile_tokens(TileClass::small)));
    take(&tile_count, 1);
    take(&activated, pairs * slot_sections(shape).intermediate_stride);
    take(&rows, pairs * shape.hidden);
    gathered = rows;
    bytes = at;
  }
};

// Token rows as the copy engine sees them.
struct RowMaps {
  bool gather;  // hidden rows are copied into permuted order first
  CUtensorMap gathered, activated;
};

cudaError_t make_row_maps(const LayerArgs& args, const Workspace& work, TileClass size,
                          RowMaps* out) {
  const auto map = [&](const void* base, int64_t columns, CUtensorMap* to) {
    const int64_t count = args.tokens * args.top_k;
    return make_tensor_map({static_cast<const std::byte*>(base), columns, count, 1, columns * 2,
                            count * columns * 2, 2},
                           token_box(size), to);
  };
  out->gather = args.gather >= 0 ? args.gather
                                 : choose_gather(args.tokens, args.top_k, args.pool.num_experts);
  out->gather |= !gathers(size);
  const cudaError_t error = map(work.gathered, args.pool.shape.hidden, &out->gathered);
  if (error != cudaSuccess) return error;
  return map(work.activated, args.pool.sections.intermediate_stride, &out->activated);
}

cudaError_t enqueue_routing(const LayerArgs& args, const Workspace& work, TileClass size,
                            cudaStream_t stream) {
  const int32_t experts = args.pool.num_experts;
  TopKArgs topk;
  topk.rule = args.rule;
  topk.rule.candidates = experts;
  topk.rule.top_k = args.top_k;
  topk.logits = args.logits;
  topk.tokens = args.tokens;
  topk.ids = work.ids;
  topk.weights = work.weights;
  const PermuteArgs permute = {
      work.ids,          args.tokens,    args.top_k,       experts,    args.pool.slot_of_expert,
      tile_tokens(size), work.row_token, work.row_of_pair, work.tiles, work.tile_count};
  if (args.tokens <= kMaxFusedTokens) return launch_topk_permute(topk, permute, stream);
  if (const cudaError_t error = launch_topk(topk, stream); error != cudaSuccess) return error;
  return launch_permute(permute, stream);
}

GroupedGemmArgs gate_up(const LayerArgs& args, const Workspace& work, const RowMaps& maps) {
  const SlotSections& sections = args.pool.sections;
  GroupedGemmArgs gemm = {};
  gemm.weights = args.maps->gate_up;
  gemm.weight_rows = 2 * sections.intermediate_stride;
  gemm.depth = args.pool.shape.hidden;
  gemm.tiles = work.tiles;
  gemm.tile_count = work.tile_count;
  if (maps.gather) {
    gemm.rows = maps.gathered;
  } else {
    gemm.row_index = work.row_token;
    gemm.row_base = reinterpret_cast<const std::byte*>(args.hidden);
    gemm.row_bytes = args.pool.shape.hidden * 2;
  }
  if (args.pool.shape.bias) gemm.bias = args.pool.base + sections.gate_up_bias;
  gemm.slot_bytes = args.pool.slot_bytes;
  gemm.out = work.activated;
  gemm.out_stride = gemm.out_columns = sections.intermediate_stride;
  gemm.activated = 1;
  gemm.activation = args.activation;
  gemm.alpha = args.alpha;
  gemm.limit = args.limit;
  return gemm;
}

GroupedGemmArgs down(const LayerArgs& args, const Workspace& work, const RowMaps& maps) {
  const SlotSections& sections = args.pool.sections;
  GroupedGemmArgs gemm = {};
  gemm.weights = args.maps->down;
  gemm.weight_rows = args.pool.shape.hidden;
  gemm.depth = sections.intermediate_stride;
  gemm.tiles = work.tiles;
  gemm.tile_count = work.tile_count;
  gemm.rows = maps.activated;
  if (args.pool.shape.bias) gemm.bias = args.pool.base + sections.down_bias;
  gemm.slot_bytes = args.pool.slot_bytes;
  gemm.out = work.rows;
  gemm.out_stride = gemm.out_columns = args.pool.shape.hidden;
  gemm.weights_early = 1;
  return gemm;
}

}  // namespace

cudaError_t make_pool_maps(const ExpertPool& pool, PoolMaps* out) {
  const SlotSections& s = pool.sections;
  const int32_t bytes = pool.shape.element_bytes;
  const PoolMatrix gate_up = {pool.base + s.gate_up,
                              s.hidden_stride,
                              2 * s.intermediate_stride,
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

size_t layer_workspace_bytes(const SlotShape& shape, int64_t num_experts, int64_t tokens,
                             int32_t top_k) {
  return Workspace(nullptr, shape, num_experts, tokens, top_k).bytes;
}

cudaError_t enqueue_layer(const LayerArgs& args, cudaStream_t stream) {
  const SlotShape& shape = args.pool.shape;
  if (shape.hidden % 8 != 0 || shape.element_bytes != 2) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  const int64_t pairs = args.tokens * args.top_k;
  const int64_t experts = args.pool.num_experts;
  const TileClass size = args.size >= 0 ? static_cast<TileClass>(args.size)
                                        : choose_tile_class(args.tokens, args.top_k, experts);
  const int64_t tiles = max_tiles(pairs, experts, tile_tokens(size));
  const Workspace work(args.workspace, shape, experts, args.tokens, args.top_k);
  const CombineArgs combine = {work.rows,  work.row_of_pair, work.weights, args.tokens,
                               args.top_k, shape.hidden,     args.out,     nullptr};

  RowMaps maps;
  cudaError_t error = make_row_maps(args, work, size, &maps);
  if (error == cudaSuccess) error = enqueue_routing(args, work, size, stream);
  if (error == cudaSuccess && maps.gather)
    error = launch_gather(
        {args.hidden, work.row_token, args.tokens, pairs, shape.hidden, work.gathered}, stream);
  if (error == cudaSuccess)
    error = launch_grouped_gemm_bf16(size, gate_up(args, work, maps), tiles, args.multiprocessors,
                                     stream);
  if (error == cudaSuccess)
    error =
        launch_grouped_gemm_bf16(size, down(args, work, maps), tiles, args.multiprocessors, stream);
  return error == cudaSuccess ? launch_combine(combine, stream) : error;
}

}  // namespace moe::cuda
