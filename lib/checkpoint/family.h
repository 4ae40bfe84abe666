// A model family: what its config.json says about each layer, and how its tensors are named and
// laid out. One row of the table in families.cc each.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/weights.h"

namespace moe {

class ModelConfig;

enum class Owner : int32_t { routed, shared };

// The name of a tensor that is stored nowhere and reads as zeros.
inline constexpr std::string_view kZeros = {};

// Where one canonical tensor is stored. Several rules may name the same one: the first whose name
// is present in the checkpoint holds, so published and re-saved layouts live side by side.
struct TensorRule {
  WeightKind kind;        // with a 'g' axis: gate stands for up as well, gate_bias for up_bias
  std::string_view name;  // what follows "model.layers.3."; {e} is the expert's index
  std::string_view axes;  // see axes.h
  Owner owner = Owner::routed;
};

struct FamilyLayer {
  LayerSpec spec;
  // Router tensors beyond the weight (selection bias, ...). Biases of experts, the shared expert
  // and its gate follow from the spec.
  std::vector<WeightKind> router = {};
  // What names of this layer begin with, where its index alone does not say ("" otherwise).
  std::string prefix = {};
};

struct Family {
  std::string_view model_type;

  // Layer `layer`, or nothing where the layer is dense. A value the config lacks or has wrong is
  // noted in `config`.
  std::optional<FamilyLayer> (*layer)(ModelConfig& config, int32_t layer);
  std::span<const TensorRule> rules;

  // Number of layers; null: num_hidden_layers.
  int64_t (*layers)(ModelConfig& config) = nullptr;

  // More experts may be stored than the router can pick (ERNIE-VL's vision experts).
  bool more_experts = false;

  // What names begin with, in front of a layer's index; others of the known ones work too.
  std::string_view prefix = "model.layers.";

  // What a synthetic model's config.json says beyond the usual keys (synthetic_config.h). Empty:
  // none can be made.
  std::string_view architecture = {};  // "MixtralForCausalLM"
  std::string_view synthetic = {};
  int32_t synthetic_shared = 1;  // width of the shared experts, in experts
  std::string_view activation = "silu";
};

// The family called `model_type` in config.json, or null.
const Family* find_family(std::string_view model_type);
// The same by config.json's "architectures", for a model_type that nobody else uses.
const Family* find_architecture(std::string_view architecture);
// The model_type of every family, sorted.
std::vector<std::string_view> family_names();

// Tables of rules, one behind the other.
template <size_t... N>
constexpr auto join(const TensorRule (&... tables)[N]) {
  std::array<TensorRule, (N + ...)> all{};
  size_t at = 0;
  (([&](const auto& table) {
     for (const TensorRule& rule : table) all[at++] = rule;
   }(tables)),
   ...);
  return all;
}

}  // namespace moe
