// What a canonical tensor of an expert is to the matrix that it belongs to.
#pragma once

#include "moe/weights.h"

namespace moe {

enum class Role : int32_t {
  other,   // tensors of the router, biases
  matrix,  // gate, up, down
  scale,
  zero,
  group,
};

constexpr Role role_of(WeightKind kind) {
  if (kind < WeightKind::gate) return Role::other;
  if (kind <= WeightKind::down) return Role::matrix;
  if (kind < WeightKind::gate_scale) return Role::other;
  if (kind <= WeightKind::down_scale) return Role::scale;
  return kind <= WeightKind::down_zero ? Role::zero : Role::group;
}

// The tensor that plays `role`, any but other, for gate, up or down.
constexpr WeightKind companion(WeightKind matrix, Role role) {
  constexpr WeightKind kGates[] = {WeightKind::gate, WeightKind::gate, WeightKind::gate_scale,
                                   WeightKind::gate_zero, WeightKind::gate_group};
  const int place = static_cast<int>(matrix) - static_cast<int>(WeightKind::gate);
  return static_cast<WeightKind>(static_cast<int>(kGates[static_cast<int>(role)]) + place);
}

// The matrix that a scale, zero point or group index belongs to; other kinds are their own.
constexpr WeightKind matrix_of(WeightKind kind) {
  if (kind < WeightKind::gate_scale) return kind;
  const int place = (static_cast<int>(kind) - static_cast<int>(WeightKind::gate_scale)) % 3;
  return static_cast<WeightKind>(static_cast<int>(WeightKind::gate) + place);
}

}  // namespace moe
