// What a layer is made of, and where its bytes come from. A Checkpoint is a WeightSource; so is a
// host that already holds the weights.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "moe/export.h"
#include "moe/router.h"
#include "moe/status.h"
#include "moe/tensor.h"

namespace moe {

// g = gate row, u = up row of one expert. Not gated: u alone.
enum class Activation : int32_t {
  silu,         // silu(g) * u
  gelu,         // gelu(g) * u, exact (erf)
  gelu_tanh,    // gelu(g) * u, tanh approximation
  relu,         // relu(g) * u
  relu2,        // relu(g)^2 * u
  swiglu_oai,   // g = min(g, limit), u = clamp(u, +-limit): (u + 1) * g * sigmoid(alpha * g)
  swiglu_step,  // min(silu(g), limit) * clamp(u, +-limit)
};

// How a weight matrix is stored.
enum class FormatKind : int32_t {
  f32,
  f16,
  bf16,
  fp8_block,  // E4M3; one scale per group x group block (DeepSeek-V3) or, group 0, per output
  int8,       // (q - zero) * scale; one scale per row (group 0) or per `group` inputs of a row
  int4,       // ditto, q from 0 to 15, two per byte, even input in the low nibble; zero is 8
  mxfp4,      // E2M1 with an E8M0 scale per 32 inputs
  nvfp4,      // E2M1 with an E4M3 scale per 16 inputs and one f32
};

// How the weights of one expert are stored.
struct Format {
  FormatKind kind = FormatKind::bf16;  // of the elements
  int32_t group = 0;  // inputs (fp8_block: also outputs) that share a scale; 0: none or whole row
  DType scale = DType::f32;  // type of the scales: f32, f16 or bf16
  bool zero_points = false;  // int8, int4: each group has a zero of its own
  bool act_order = false;    // int8, int4: a tensor says which group each input is in (GPTQ)

  friend bool operator==(const Format&, const Format&) = default;
};

MOE_API const char* to_string(Activation activation);  // "silu"
MOE_API const char* to_string(FormatKind kind);        // "bf16"

// The feed-forward network of one expert:
//   gated:     down(activation(gate x, up x))
//   otherwise: down(activation(up x))
// gate and up are (intermediate, hidden), down is (hidden, intermediate), all [out][in].
struct ExpertSpec {
  int64_t hidden = 0;                        // elements of a row
  int64_t intermediate = 0;                  // rows of gate and up
  Activation activation = Activation::silu;  // between up and down
  bool gated = true;                         // has a gate projection
  bool bias = false;                         // gate, up and down have one each
  float alpha = 1.702f;                      // of swiglu_oai
  float limit = 7.0f;                        // of swiglu_oai and swiglu_step
  Format format;                             // of gate, up and down

  friend bool operator==(const ExpertSpec&, const ExpertSpec&) = default;
};

// The experts that see every row. One wide network: `shared experts` of a family are stored fused.
struct SharedSpec {
  ExpertSpec expert;          // all shared experts as one
  bool sigmoid_gate = false;  // scaled by sigmoid(w . x) (Qwen2-MoE family)
  // out = routed_scale * routed + shared_scale * shared; both 0.5 where a family averages.
  float routed_scale = 1;
  float shared_scale = 1;  // of the shared expert's result

  friend bool operator==(const SharedSpec&, const SharedSpec&) = default;
};

// One MoE layer: what routes its rows, and what its experts compute.
struct LayerSpec {
  int32_t layer = -1;                // the checkpoint's own index
  RouterSpec router;                 // rule; its weights come from the source
  ExpertSpec expert;                 // each of the routed ones
  std::optional<SharedSpec> shared;  // empty: none

  int64_t hidden() const { return expert.hidden; }  // values of one row

  friend bool operator==(const LayerSpec&, const LayerSpec&) = default;
};

// ok, or invalid_argument naming the field, its value and its range.
MOE_API Status validate(const LayerSpec& spec);

// One canonical tensor of a layer. Shapes in brackets; C = router.candidates().
enum class WeightKind : int32_t {
  router_weight,            // (C, hidden)
  router_bias,              // (C)          RouterWeights::logit_bias
  router_selection_bias,    // (C)
  router_per_expert_scale,  // (C)
  router_input_scale,       // (hidden)
  router_token_experts,     // (vocabulary, top_k)
  shared_gate,              // (1, hidden)  SharedSpec::sigmoid_gate

  // Of one expert, or of the shared expert (kSharedExpert).
  gate,  // (intermediate, hidden)
  up,    // (intermediate, hidden)
  down,  // (hidden, intermediate)
  gate_bias,
  up_bias,    // (intermediate)
  down_bias,  // (hidden)
  gate_scale,
  up_scale,
  down_scale,  // quantised formats: (outputs, groups), fp8_block: a scale per block; Format::scale

  gate_zero,
  up_zero,
  down_zero,  // (outputs, groups) i8 (int8) or u8 (int4): Format::zero_points

  gate_group,
  up_group,
  down_group,  // (inputs) i32: the group of each input, Format::act_order
};

inline constexpr int32_t kSharedExpert =
    -1;  // stands for the shared expert where an index is asked for

// Names one canonical tensor of a model.
struct WeightId {
  int32_t layer = -1;                           // the checkpoint's own index
  WeightKind kind = WeightKind::router_weight;  // which tensor
  int32_t expert = kSharedExpert;               // used by the kinds from `gate` on
};

MOE_API const char* to_string(WeightKind kind);  // "router_weight"

// One of several tensors that are wanted together.
struct WeightRead {
  WeightId id;            // which one
  MutableTensorView out;  // where to, as for WeightSource::read()
};

// Safe for concurrent use.
class MOE_API WeightSource {
 public:
  virtual ~WeightSource();

  // The MoE layers, ascending in LayerSpec::layer. Owned by the source, constant.
  virtual const std::vector<LayerSpec>& layers() const noexcept = 0;

  // Type and shape of a tensor in the canonical orientation (kinds above), as stored.
  // not_found if the layer has no such tensor.
  virtual Result<TensorShape> describe(const WeightId& id) const = 0;

  // Copies one tensor into `out`, whose type and shape must equal describe()'s; strides are free,
  // so that gate and up can be written interleaved. Reads no bytes of other experts.
  virtual Status read(const WeightId& id, const MutableTensorView& out) const = 0;

  // All of `reads`, such as the tensors of one expert: a source whose bytes are far away fetches
  // them together. The first failure is returned, and every `out` holds anything then. Unless a
  // source knows better: read() for each.
  virtual Status read_all(std::span<const WeightRead> reads) const;

  // One line for messages: a directory, or what the host calls it.
  virtual std::string_view name() const noexcept = 0;
};

// Weights that a host already holds: copies of nothing, views of everything.
class MOE_API MemoryWeights final : public WeightSource {
 public:
  // `layers` ascend in LayerSpec::layer. Every tensor they need is then given by set().
  explicit MemoryWeights(std::vector<LayerSpec> layers);
  ~MemoryWeights() override;
  MemoryWeights(const MemoryWeights&) = delete;
  MemoryWeights& operator=(const MemoryWeights&) = delete;

  // `view` must stay valid as long as this source is used. Replaces an earlier view of `id`.
  // invalid_argument if the shape is not what the layer's spec says.
  Status set(const WeightId& id, const TensorView& view);

  const std::vector<LayerSpec>& layers() const noexcept override;
  Result<TensorShape> describe(const WeightId& id) const override;
  Status read(const WeightId& id, const MutableTensorView& out) const override;
  std::string_view name() const noexcept override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
