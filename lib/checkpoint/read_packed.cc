#include "checkpoint/read_packed.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "checkpoint/packed_names.h"
#include "checkpoint/read_slice.h"
#include "core/error.h"

namespace moe {
namespace {

template <class T>
T load(const std::byte* bytes, int64_t at) {
  T value;
  std::memcpy(&value, bytes + at * static_cast<int64_t>(sizeof value), sizeof value);
  return value;
}

void unpack(const TensorSlice& slice, const std::byte* words, uint8_t* out) {
  if (slice.role == Role::zero)
    unpack_zeros(slice.packed, words, out);
  else
    unpack_values(slice.packed, words, out);
}

Status disagrees(const Witness& witness, const std::string& what, const std::string& wanted) {
  return error(
      StatusCode::data_loss, {.file = witness.tensor->file, .tensor = witness.tensor->name},
      "{} in {}: {}; wanted {}, as config.json says. Correct config.json, or fetch the file "
      "again",
      witness.tensor->name, witness.tensor->file, what, wanted);
}

Status check_zeros(const Witness& witness, const std::byte* bytes) {
  const PackedMatrix& m = witness.matrix;
  const int64_t groups = groups_of(m.format, m.columns);
  std::vector<uint8_t> zeros(static_cast<size_t>(m.rows * groups));
  unpack_zeros(m, bytes, zeros.data());
  const uint8_t middle = middle_zero(m.format);
  const auto other =
      std::find_if(zeros.begin(), zeros.end(), [&](uint8_t z) { return z != middle; });
  if (other == zeros.end()) return {};
  const int offset = m.format.kind == FormatKind::int8 ? 128 : 0;
  const auto shown = [&](uint8_t z) { return offset ? static_cast<int8_t>(z) + offset : int{z}; };
  return disagrees(witness,
                   fmt::format("the zero point of output {} and group {} is {}",
                               (other - zeros.begin()) / groups, (other - zeros.begin()) % groups,
                               shown(*other)),
                   fmt::format("{} throughout (symmetric)", shown(middle)));
}

Status check_groups(const Witness& witness, const std::byte* bytes) {
  const Format& format = witness.matrix.format;
  for (int64_t k = 0; k < witness.matrix.columns; ++k) {
    const int64_t group = load<int32_t>(bytes, k), wanted = format.group > 0 ? k / format.group : 0;
    if (group != wanted)
      return disagrees(witness, fmt::format("input {} is in group {}", k, group),
                       fmt::format("{} (no act-order)", wanted));
  }
  return {};
}

Status check_extents(const Witness& witness, const std::byte* bytes) {
  const bool wide = witness.tensor->dtype == DType::i64;
  const auto at = [&](int64_t i) {
    return wide ? load<int64_t>(bytes, i) : load<int32_t>(bytes, i);
  };
  const PackedMatrix& m = witness.matrix;
  if (at(0) == m.rows && at(1) == m.columns) return {};
  return disagrees(witness, fmt::format("[{}, {}]", at(0), at(1)),
                   fmt::format("[{}, {}]", m.rows, m.columns));
}

}  // namespace

Status unpack_slice(const TensorSlice& slice, const std::byte* words,
                    const MutableTensorView& out) {
  if (out.strides == row_major(out.shape))
    return unpack(slice, words, static_cast<uint8_t*>(out.data)), Status();
  std::vector<uint8_t> dense(static_cast<size_t>(out.shape.elements()));
  unpack(slice, words, dense.data());
  TensorSlice whole;
  whole.row_step = out.shape[1];
  whole.column_step = 1;
  const auto from_memory = [&](int64_t offset, int64_t bytes, void* to) {
    std::memcpy(to, dense.data() + offset, static_cast<size_t>(bytes));
    return Status();
  };
  return read_slice(whole, from_memory, out);
}

std::vector<Witness> witnesses_of(const LayerSet::Found& found, const TensorDirectory& files) {
  const PackedMatrix& matrix = found.slice.packed;
  std::vector<Witness> witnesses;
  if (matrix.packing == Packing::none || found.slice.role != Role::matrix) return witnesses;
  const PackedNames& names = packed_names(matrix.packing);
  const auto add = [&](std::string_view suffix, Role role) {
    std::string name = found.name.substr(0, found.name.size() - names.values.size());
    if (const Checkpoint::Tensor* tensor = files.find(name.append(suffix)))
      witnesses.push_back({tensor, role, matrix});
  };
  if (!matrix.format.zero_points) add(names.zeros, Role::zero);
  if (!matrix.format.act_order) add(names.groups, Role::group);
  if (!names.extents.empty()) add(names.extents, Role::other);
  return witnesses;
}

Status check_witness(const Witness& witness, const std::byte* bytes) {
  switch (witness.role) {
    case Role::zero: return check_zeros(witness, bytes);
    case Role::group: return check_groups(witness, bytes);
    default: return check_extents(witness, bytes);
  }
}

}  // namespace moe
