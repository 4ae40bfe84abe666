#include "checkpoint/layer_tensors.h"

#include <algorithm>
#include <charconv>

#include "checkpoint/packed_names.h"
#include "quant/formats.h"

namespace moe {
namespace {

// The axes of a canonical tensor; 0: none (a vector has no column), 1: an extent of one.
struct CanonicalAxes {
  char row, column;
};

CanonicalAxes canonical_axes(WeightKind kind) {
  switch (kind) {
    case WeightKind::router_weight: return {'c', 'h'};
    case WeightKind::router_bias:
    case WeightKind::router_selection_bias:
    case WeightKind::router_per_expert_scale: return {'c', 0};
    case WeightKind::router_input_scale: return {'h', 0};
    case WeightKind::router_token_experts: return {'v', 'k'};
    case WeightKind::shared_gate: return {1, 'h'};
    case WeightKind::gate:
    case WeightKind::up: return {'i', 'h'};
    case WeightKind::down: return {'h', 'i'};
    case WeightKind::gate_bias:
    case WeightKind::up_bias: return {'i', 0};
    case WeightKind::down_bias: return {'h', 0};
    default: return {0, 0};
  }
}

Extents extents_of(const LayerSpec& spec, Owner owner) {
  const ExpertSpec& expert = owner == Owner::shared ? spec.shared->expert : spec.expert;
  return {.candidates = spec.router.candidates(),
          .hidden = spec.hidden(),
          .intermediate = expert.intermediate,
          .experts = spec.router.num_experts,
          .top_k = spec.router.top_k};
}

int64_t extent_of(char axis, const Extents& extents) {
  switch (axis) {
    case 'c': return extents.candidates;
    case 'h': return extents.hidden;
    case 'i': return extents.intermediate;
    case 'k': return extents.top_k;
    case 'v': return kAnyExtent;
    default: return 1;
  }
}

void add_expert_parts(const ExpertSpec& expert, Owner owner, std::vector<Part>* parts) {
  using enum WeightKind;
  for (WeightKind kind : {gate, up, down})
    if (expert.gated || kind != gate) parts->push_back({kind, owner});
  if (!expert.bias) return;
  for (WeightKind kind : {gate_bias, up_bias, down_bias})
    if (expert.gated || kind != gate_bias) parts->push_back({kind, owner});
}

// A scale for every group: what is grouped counts once.
Extents grouped(Extents extents, const Format& format, WeightKind matrix) {
  const bool by_hidden = canonical_axes(matrix).column == 'h';
  int64_t& inputs = by_hidden ? extents.hidden : extents.intermediate;
  int64_t& outputs = by_hidden ? extents.intermediate : extents.hidden;
  inputs = groups_of(format, inputs);
  if (format.group > 0 && find_format(format.kind)->square) outputs = groups_of(format, outputs);
  return extents;
}

}  // namespace

Dims canonical_shape(const LayerSpec& spec, const Part& part) {
  const Extents extents = extents_of(spec, part.owner);
  const CanonicalAxes axes = canonical_axes(part.kind);
  if (!axes.row) return {};
  if (!axes.column) return {extent_of(axes.row, extents)};
  return {extent_of(axes.row, extents), extent_of(axes.column, extents)};
}

LayerTensors::LayerTensors(std::string prefix, FamilyLayer layer)
    : prefix_(std::move(prefix)), layer_(std::move(layer)) {
  parts_.push_back({WeightKind::router_weight});
  for (WeightKind kind : layer_.router) parts_.push_back({kind});
  if (spec().shared && spec().shared->sigmoid_gate) parts_.push_back({WeightKind::shared_gate});
  if (spec().shared) add_expert_parts(spec().shared->expert, Owner::shared, &parts_);
  add_expert_parts(spec().expert, Owner::routed, &parts_);
}

bool LayerTensors::has(const Part& part) const {
  const Format& format = this->format(part.owner);
  const Part matrix = {matrix_of(part.kind), part.owner};
  switch (role_of(part.kind)) {
    case Role::scale: return has(matrix) && is_quantised(format.kind);
    case Role::zero: return has(matrix) && format.zero_points;
    case Role::group: return has(matrix) && format.act_order;
    default: break;
  }
  return std::any_of(parts_.begin(), parts_.end(),
                     [&](const Part& p) { return p.kind == part.kind && p.owner == part.owner; });
}

bool LayerTensors::serves(const TensorRule& rule, const Part& part) {
  if (rule.owner != part.owner) return false;
  if (rule.kind == part.kind) return true;
  const bool both = rule.axes.find('g') != std::string_view::npos;
  return both && ((rule.kind == WeightKind::gate && part.kind == WeightKind::up) ||
                  (rule.kind == WeightKind::gate_bias && part.kind == WeightKind::up_bias));
}

void LayerTensors::name(const TensorRule& rule, int32_t expert, std::string* out) const {
  out->clear();
  if (rule.name == kZeros) return;
  out->assign(prefix_);
  const size_t hole = rule.name.find("{e}");
  out->append(rule.name.substr(0, hole));
  if (hole == std::string_view::npos) return;
  char digits[12];
  out->append(digits, std::to_chars(digits, digits + sizeof digits, expert).ptr);
  out->append(rule.name.substr(hole + 3));
}

void LayerTensors::name(const Part& matrix, Role role, int32_t expert, std::string* out) const {
  name(rule(matrix), expert, out);
  const StoredQuant& stored = quant(matrix.owner);
  if (stored.packing != Packing::none)
    return rename_weight(packed_names(stored.packing).of(role), out);
  if (role == Role::scale) out->append(stored.scales);
  if (role == Role::zero) out->append("_zero_point");
  if (role == Role::group) out->append("_g_idx");
}

void LayerTensors::name(const Part& part, int32_t expert, std::string* out) const {
  const Role role = role_of(part.kind);
  if (role == Role::other) return name(rule(part), expert, out);
  name({matrix_of(part.kind), part.owner}, role, expert, out);
}

StoredLayout LayerTensors::scale_layout(const Part& matrix) const {
  const Extents extents =
      grouped(extents_of(spec(), matrix.owner), format(matrix.owner), matrix.kind);
  const Packing packing = quant(matrix.owner).packing;
  if (packing == Packing::none || !packed_names(packing).transposed)
    return stored_layout(rule(matrix).axes, extents);
  return stored_layout(matrix.kind == WeightKind::down ? "i h" : "h i", extents);
}

PackedMatrix LayerTensors::packed(const Part& matrix) const {
  const Dims shape = canonical_shape(spec(), matrix);
  return {quant(matrix.owner).packing, format(matrix.owner), shape[0], shape[1]};
}

// Scales, and zero points that are stored like them.
TensorSlice LayerTensors::scale_slice(const Part& part, int32_t expert) const {
  const Part matrix = {matrix_of(part.kind), part.owner};
  const Dims shape = canonical_shape(spec(), matrix);
  TensorSlice slice{.rule = &rule(matrix),
                    .stored = scale_layout(matrix),
                    .shape = scale_shape(format(part.owner), shape[0], shape[1])};
  if (quant(part.owner).single) return slice;
  const CanonicalAxes axes = canonical_axes(matrix.kind);
  slice.row_step = slice.stored.step(axes.row);
  slice.column_step = slice.stored.step(axes.column);
  if (part.owner == Owner::routed) slice.base += expert * slice.stored.step('e');
  if (matrix.kind == WeightKind::up) slice.base += slice.stored.step('g');
  return slice;
}

// Words of values or zero points, and group indices.
TensorSlice LayerTensors::packed_slice(const Part& part) const {
  const Part matrix = {matrix_of(part.kind), part.owner};
  const PackedMatrix packed = this->packed(matrix);
  TensorSlice slice{.rule = &rule(matrix), .role = role_of(part.kind)};
  if (slice.role == Role::group) {
    slice.stored.shape = slice.shape = {packed.columns};
    slice.row_step = 1;
    return slice;
  }
  const bool values = slice.role == Role::matrix;
  slice.stored.shape = values ? packed_values(packed) : packed_zeros(packed);
  slice.shape = values ? value_shape(packed.format, packed.rows, packed.columns)
                       : scale_shape(packed.format, packed.rows, packed.columns);
  slice.packed = packed;
  return slice;
}

StoredLayout LayerTensors::layout(const TensorRule& rule) const {
  return stored_layout(rule.axes, extents_of(spec(), rule.owner));
}

TensorSlice LayerTensors::slice(const Part& part, int32_t expert) const {
  const Role role = role_of(part.kind);
  const bool packed = role != Role::other && quant(part.owner).packing != Packing::none;
  if (role == Role::group || (packed && role != Role::scale)) return packed_slice(part);
  if (role == Role::scale || role == Role::zero) return scale_slice(part, expert);
  const TensorRule& rule = this->rule(part);
  const CanonicalAxes axes = canonical_axes(part.kind);
  TensorSlice slice{.rule = &rule, .stored = layout(rule), .shape = canonical_shape(spec(), part)};
  if (axes.row >= 'a') slice.row_step = slice.stored.step(axes.row);
  if (axes.column >= 'a') slice.column_step = slice.stored.step(axes.column);
  const bool second = part.kind == WeightKind::up || part.kind == WeightKind::up_bias;
  if (part.owner == Owner::routed && is_expert_kind(part.kind))
    slice.base += expert * slice.stored.step('e');
  if (second) slice.base += slice.stored.step('g');
  return slice;
}

}  // namespace moe
