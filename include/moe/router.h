// Which experts compute a row, and with what weight. One parametrised rule covers every published
// model family; a host may bring a Router of its own.
//
//   l   = W x + b                            logits, accumulated in f32
//   l   = c tanh(l / c)                      if there is a softcap c
//   s   = scoring(l)
//   key = s + selection_bias                 the bias is for selection only
//   groups: the best `top_groups` of `num_groups` stay, the others' keys become -inf
//   S   = the top_k largest keys; ties, of groups too, go to the lower index
//   w   = weighting(s or l of S), normalised, times per_expert_scale, times scaling
//
// A logit that is not finite is taken out before scoring: it enters no softmax and is never
// selected. Nor is a key that is not finite. A row with fewer than top_k candidates gets id -1 and
// weight 0 in its last places. By top2_sum a group with one candidate comes after all with two.
//
// Keys are f32; without a selection bias, scores that round alike are ordered by their logits.
// Weights are correct to 1 ulp of f32. Where the divisor of a normalisation is 0 the weights stay
// as they are. Every CPU and GPU chooses and weighs the same logits alike, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "moe/export.h"
#include "moe/host.h"
#include "moe/status.h"
#include "moe/stream.h"
#include "moe/tensor.h"

namespace moe {

// What makes scores of logits.
enum class Scoring : int32_t { softmax, sigmoid, sqrt_softplus, identity };

// How the experts of a row are chosen.
enum class Selection : int32_t {
  top_k,
  sparsemixer,   // PhiMoE: two draws, each weighted by a softmax over the near ties; top_k is 2
  token_lookup,  // DeepSeek-V4's hash layers: experts come from a table indexed by token id
};

// What a group of experts is worth: its largest key, or the sum of its two largest.
enum class GroupScore : int32_t { max, top2_sum };

// What a selected expert's weight is made from.
enum class Weighting : int32_t { score, softmax_of_selected_logits, sigmoid_of_logit };

// What is done with the weights of one row together.
enum class Normalize : int32_t {
  none,
  sum_plus_epsilon,      // w / (sum(w) + epsilon)
  sum_at_least_epsilon,  // w / max(sum(w), epsilon)
  p_norm,                // w / ||w||_p
};

// The routing rule of one layer. Plain data.
struct RouterSpec {
  int32_t num_experts = 0;       // experts that have weights
  int32_t num_zero_experts = 0;  // ids num_experts ... pass the row through (LongCat)
  int32_t top_k = 0;             // experts of a row

  Scoring scoring = Scoring::softmax;        // of the logits
  Selection selection = Selection::top_k;    // how the top_k are found
  int32_t num_groups = 1;                    // num_experts must be a multiple of it
  int32_t top_groups = 1;                    // groups that stay
  GroupScore group_score = GroupScore::max;  // how groups are ordered

  Weighting weighting = Weighting::score;  // what a weight is made from
  Normalize normalize = Normalize::none;   // what makes the weights comparable
  float epsilon = 0;                       // of Normalize
  float norm_power = 1;                    // p of Normalize::p_norm
  float scaling = 1;                       // routed_scaling_factor, last of all

  float softcap = 0;                 // 0: none
  float sparsemixer_epsilon = 0;     // PhiMoE's router_jitter_noise
  bool normalize_input = false;      // logits from rmsnorm(x) * hidden^-0.5 * input_scale (Gemma 4)
  float input_norm_epsilon = 1e-6f;  // of the rmsnorm of normalize_input

  // Most rows per expert and call, in row order; later rows are dropped: id -1, weight 0 (Switch).
  // 0: unlimited.
  int64_t capacity = 0;

  // The weight multiplies the expert's input instead of its output (Llama 4).
  bool weight_on_input = false;

  int32_t candidates() const { return num_experts + num_zero_experts; }  // ids a row may get

  friend bool operator==(const RouterSpec&, const RouterSpec&) = default;
};

// ok, or invalid_argument naming the field, its value and its range.
MOE_API Status validate(const RouterSpec& spec);

// Tensors of one layer's router. Views; empty ones (data == nullptr) are absent.
// Any of f32, bf16, f16; C is spec.candidates().
struct RouterWeights {
  TensorView weight;            // (C, hidden)
  TensorView logit_bias;        // (C)
  TensorView selection_bias;    // (C)
  TensorView per_expert_scale;  // (C)
  TensorView input_scale;       // (hidden)
  TensorView token_experts;     // (vocabulary, top_k) i32 or i64; Selection::token_lookup
};

// One batch to route.
struct RouteInput {
  int32_t layer = -1;  // the checkpoint's own index
  TensorView hidden;   // (tokens, hidden) f32, bf16, f16; rows may be strided
  TensorView logits;   // (tokens, C) any float type: W x + b, already computed. Empty: compute them

  const int64_t* token_ids = nullptr;    // (tokens), for Selection::token_lookup
  int32_t top_k = 0;                     // 0: the spec's. At most candidates()
  const uint8_t* expert_mask = nullptr;  // (tokens, C); 0 takes out before scoring. Null: all

  Stream stream;                   // where the rows are; the CPU has none
  Executor* executor = nullptr;    // null: the calling thread
  std::span<std::byte> workspace;  // at least Router::workspace_bytes(), 64-byte aligned
};

// What was chosen. Row-major (tokens, top_k), highest key first (a token table: in its order).
// Owned by the caller.
struct Routing {
  int64_t tokens = 0;        // rows
  int32_t top_k = 0;         // experts of a row
  int32_t* ids = nullptr;    // -1: no expert
  float* weights = nullptr;  // as applied, scaling included
};

// Counted while routing.
struct RouteCounts {
  int64_t nonfinite_rows = 0;  // rows with at least one non-finite logit
  int64_t short_rows = 0;      // rows with fewer than top_k candidates
  int64_t dropped = 0;         // choices lost to `capacity`
};

// Safe for concurrent use with different outputs and workspaces.
class MOE_API Router {
 public:
  virtual ~Router();

  // The built-in rule on the CPU. The views in `weights` must outlive the router.
  static Result<std::unique_ptr<Router>> create(const RouterSpec& spec,
                                                const RouterWeights& weights = {});

  virtual const RouterSpec& spec() const noexcept = 0;  // constant

  // Scratch that route() needs for `tokens` rows. Constant in everything else.
  virtual size_t workspace_bytes(int64_t tokens, int concurrency) const noexcept;

  // Fills `out` (out.tokens, out.top_k and both arrays are set by the caller) and adds to `counts`.
  virtual Status route(const RouteInput& input, const Routing& out, RouteCounts* counts) const = 0;
};

}  // namespace moe
