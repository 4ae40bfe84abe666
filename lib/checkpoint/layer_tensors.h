// The stored tensors of one layer: which rule holds for each canonical tensor, and where in the
// stored tensor the canonical one lies.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/axes.h"
#include "checkpoint/family.h"
#include "moe/weights.h"
#include "quant/packed.h"
#include "quant/roles.h"

namespace moe {

// A canonical tensor inside a stored one. Element (row, column) is stored element
// base + row * row_step + column * column_step.
struct TensorSlice {
  const TensorRule* rule = nullptr;
  StoredLayout stored;
  Dims shape;  // canonical; kAnyExtent where only the stored tensor knows
  int64_t base = 0;
  int64_t row_step = 0;
  int64_t column_step = 0;
  // Unless its packing is none, the stored tensor is words, of which `role` says what they hold:
  // there are no such elements then.
  PackedMatrix packed = {};
  Role role = Role::other;
};

// A canonical tensor of a layer, experts counted as one.
struct Part {
  WeightKind kind = WeightKind::router_weight;
  Owner owner = Owner::routed;
};

inline constexpr bool is_expert_kind(WeightKind kind) { return kind >= WeightKind::gate; }

// How a checkpoint stores the quantised matrices of an owner.
struct StoredQuant {
  Packing packing = Packing::none;  // none: matrices under their own names
  std::string_view scales = {};     // what follows that name then: "_scale_inv"
  bool single = false;              // one scale for the whole matrix
};

// Shape of a canonical tensor; kAnyExtent for the vocabulary, rank 0 for what comes with one that
// is quantised.
Dims canonical_shape(const LayerSpec& spec, const Part& part);

class LayerTensors {
 public:
  // `prefix` is what tensor names of the layer begin with: "model.layers.3.".
  LayerTensors(std::string prefix, FamilyLayer layer);

  LayerSpec& spec() { return layer_.spec; }
  const LayerSpec& spec() const { return layer_.spec; }

  // Every canonical tensor that the layer must have, the router's first.
  const std::vector<Part>& parts() const { return parts_; }
  bool has(const Part& part) const;

  // Whether `rule` can serve `part`.
  static bool serves(const TensorRule& rule, const Part& part);
  void choose(const Part& part, const TensorRule& rule) { chosen_[index(part)] = &rule; }
  const TensorRule& rule(const Part& part) const { return *chosen_[index(part)]; }

  // What belongs to quantised matrices follows their rules; the format is the spec's.
  void choose_quant(Owner owner, const StoredQuant& quant) { quant_[of(owner)] = quant; }
  const StoredQuant& quant(Owner owner) const { return quant_[of(owner)]; }
  StoredLayout scale_layout(const Part& matrix) const;
  PackedMatrix packed(const Part& matrix) const;

  // Writes the stored tensor's name, "" for kZeros; `expert` counts where the name has an {e}.
  void name(const Part& part, int32_t expert, std::string* out) const;
  void name(const TensorRule& rule, int32_t expert, std::string* out) const;
  // The name of the tensor that plays `role` for `matrix`, whether or not its format has one.
  void name(const Part& matrix, Role role, int32_t expert, std::string* out) const;
  StoredLayout layout(const TensorRule& rule) const;
  TensorSlice slice(const Part& part, int32_t expert) const;

 private:
  static constexpr int kKinds = static_cast<int>(WeightKind::down_group) + 1;
  static int of(Owner owner) { return owner == Owner::shared; }
  static int index(const Part& part) {
    return static_cast<int>(part.kind) + of(part.owner) * kKinds;
  }
  const Format& format(Owner owner) const {
    return owner == Owner::shared ? spec().shared->expert.format : spec().expert.format;
  }
  TensorSlice scale_slice(const Part& part, int32_t expert) const;
  TensorSlice packed_slice(const Part& part) const;

  std::string prefix_;
  FamilyLayer layer_;
  std::vector<Part> parts_;
  const TensorRule* chosen_[2 * kKinds] = {};
  StoredQuant quant_[2];
};

// Whether `rule` names one tensor per expert.
inline bool per_expert(const TensorRule& rule) {
  return rule.name.find("{e}") != std::string_view::npos;
}

}  // namespace moe
