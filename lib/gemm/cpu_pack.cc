#include "gemm/cpu_pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "core/error.h"
#include "gemm/read_matrix.h"
#include "quant/half.h"

namespace moe::cpu {
namespace {

// Elements converted at a time: the panel they go to stays in the L1 cache.
constexpr int64_t kBlock = 256;

// A canonical matrix [outputs][inputs] of floats. Borrowed.
struct Matrix {
  DType dtype = DType::f32;
  int64_t outputs = 0;
  int64_t inputs = 0;
  const std::byte* bytes = nullptr;

  const std::byte* at(int64_t output, int64_t input) const {
    return bytes + (output * inputs + input) * (bits_of(dtype) / 8);
  }
};

// One element of a row in each format; false if it does not fit.
struct ToF32 {
  using Type = float;
  static constexpr DType kSame = DType::f32;
  static bool convert(float value, float* out) { return *out = value, true; }
};
struct ToBf16 {
  using Type = uint16_t;
  static constexpr DType kSame = DType::bf16;
  static bool convert(float value, uint16_t* out) { return *out = f32_to_bf16(value), true; }
};
struct ToF16 {
  using Type = uint16_t;
  static constexpr DType kSame = DType::f16;
  static bool convert(float value, uint16_t* out) {
    *out = f32_to_f16(value);
    return (*out & 0x7fff) != 0x7c00 || std::isinf(value);
  }
};

// Inputs [begin, begin + count) of one output.
template <class To>
bool load_block(const Matrix& from, int64_t output, int64_t begin, int64_t count,
                typename To::Type* out) {
  if (from.dtype == To::kSame) {
    std::memcpy(out, from.at(output, begin), static_cast<size_t>(count) * sizeof *out);
    return true;
  }
  float values[kBlock];
  load_row(from.dtype, from.at(output, begin), 1, count, values);
  bool fits = true;
  for (int64_t i = 0; i < count; ++i) fits &= To::convert(values[i], out + i);
  return fits;
}

// Where input `input` of output `lane` lies in a panel.
template <class To>
int64_t position(int64_t input, int64_t lane) {
  if constexpr (To::kSame == DType::bf16)
    return input / 2 * 2 * kPanel + lane * 2 + input % 2;
  else
    return input * kPanel + lane;
}

// A whole panel of what is stored as it is: 16 rows side by side, two inputs of each at a time, so
// that stores run on and loads follow 16 streams. Inputs are even.
template <class T>
void interleave_pairs(const T* rows, int64_t inputs, T* panel) {
  for (int64_t i = 0; i < inputs; i += 2, panel += 2 * kPanel)
    for (int64_t lane = 0; lane < kPanel; ++lane)
      std::memcpy(panel + 2 * lane, rows + lane * inputs + i, 2 * sizeof(T));
}

// The same for values of 16 bits: four pairs of four rows are transposed at a time.
void interleave_pairs(const uint16_t* rows, int64_t inputs, uint16_t* panel) {
  using Pairs = uint32_t __attribute__((vector_size(16)));
  const int64_t whole = inputs / 8 * 8;
  for (int64_t i = 0; i < whole; i += 8)
    for (int64_t lane = 0; lane < kPanel; lane += 4) {
      Pairs row[4];
      for (int64_t r = 0; r < 4; ++r)
        std::memcpy(&row[r], rows + (lane + r) * inputs + i, sizeof row[r]);
      const Pairs ab0 = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
      const Pairs ab2 = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
      const Pairs cd0 = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
      const Pairs cd2 = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
      const Pairs pair[4] = {__builtin_shufflevector(ab0, cd0, 0, 1, 4, 5),
                             __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7),
                             __builtin_shufflevector(ab2, cd2, 0, 1, 4, 5),
                             __builtin_shufflevector(ab2, cd2, 2, 3, 6, 7)};
      for (int64_t p = 0; p < 4; ++p)
        std::memcpy(panel + (i + 2 * p) * kPanel + 2 * lane, &pair[p], sizeof pair[p]);
    }
  for (int64_t i = whole; i < inputs; i += 2)
    for (int64_t lane = 0; lane < kPanel; ++lane)
      std::memcpy(panel + i * kPanel + 2 * lane, rows + lane * inputs + i, 2 * sizeof *rows);
}

// Outputs [first, first + kPanel) of `from`. What a panel has beyond them is zero.
template <class To>
bool pack_panel(const Matrix& from, int64_t first, int64_t panel_inputs, typename To::Type* panel) {
  if constexpr (To::kSame == DType::bf16)
    if (from.dtype == DType::bf16 && first + kPanel <= from.outputs && from.inputs % 2 == 0)
      return interleave_pairs(reinterpret_cast<const uint16_t*>(from.at(first, 0)), from.inputs,
                              panel),
             true;
  typename To::Type block[kBlock];
  bool fits = true;
  if (first + kPanel > from.outputs || panel_inputs > from.inputs)
    std::fill_n(panel, kPanel * panel_inputs, typename To::Type{});
  const int64_t lanes = std::min(kPanel, from.outputs - first);
  for (int64_t begin = 0; begin < from.inputs; begin += kBlock)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t count = std::min(kBlock, from.inputs - begin);
      fits &= load_block<To>(from, first + lane, begin, count, block);
      for (int64_t i = 0; i < count; ++i) panel[position<To>(begin + i, lane)] = block[i];
    }
  return fits;
}

// Panel p of `from` becomes panel `offset` + p * `step` of `section`.
struct Target {
  std::byte* section;
  int64_t panel_inputs;
  int64_t offset;
  int64_t step;

  // How many outputs the panels that a matrix writes have: alone in its pairs, it fills them.
  int64_t outputs(int64_t stored) const { return round_up(stored, step == 1 ? kPair : kPanel); }
};

template <class To>
bool pack_panels(const Matrix& from, const Target& to) {
  auto* panels = reinterpret_cast<typename To::Type*>(to.section);
  bool fits = true;
  for (int64_t first = 0; first < to.outputs(from.outputs); first += kPanel) {
    const int64_t panel = to.offset + first / kPanel * to.step;
    fits &= pack_panel<To>(from, first, to.panel_inputs, panels + panel * kPanel * to.panel_inputs);
  }
  return fits;
}

bool pack_matrix(FormatKind kind, const Matrix& from, const Target& to) {
  if (kind == FormatKind::f32) return pack_panels<ToF32>(from, to);
  if (kind == FormatKind::f16) return pack_panels<ToF16>(from, to);
  return pack_panels<ToBf16>(from, to);
}

// Panels of codes as bf16 has them; behind each pair of them every output's scale of every group.
void pack_fp8_panel(const QuantMatrix& from, int64_t first, int64_t panel_inputs, uint8_t* codes,
                    float* scales) {
  const int64_t lanes = std::clamp<int64_t>(from.rows - first, 0, kPanel);
  const uint8_t* rows = from.values + first * from.columns;
  if (lanes == kPanel && from.columns == panel_inputs) {
    interleave_pairs(rows, from.columns, codes);
  } else {
    std::fill_n(codes, kPanel * panel_inputs, uint8_t{0});
    for (int64_t lane = 0; lane < lanes; ++lane)
      for (int64_t i = 0; i < from.columns; ++i)
        codes[position<ToBf16>(i, lane)] = rows[lane * from.columns + i];
  }
  const int64_t groups = groups_of(from.format, from.columns);
  const int64_t high = std::max(from.format.group, 1);  // outputs that share a scale
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t lane = 0; lane < kPanel; ++lane)
      scales[g * kPair + lane] =
          lane < lanes ? from.scales[(first + lane) / high * groups + g] : 0.0f;
}

void pack_fp8_panels(const QuantMatrix& from, const Target& to) {
  const int64_t pair_size = pair_bytes(from.format, to.panel_inputs);
  for (int64_t first = 0; first < to.outputs(from.rows); first += kPanel) {
    const int64_t panel = to.offset + first / kPanel * to.step, half = panel % 2 * kPanel;
    std::byte* pair = to.section + panel / 2 * pair_size;
    pack_fp8_panel(from, first, to.panel_inputs,
                   reinterpret_cast<uint8_t*>(pair) + half * to.panel_inputs,
                   reinterpret_cast<float*>(pair + to.panel_inputs * kPair) + half);
  }
}

// The tensors of an expert, and where each one's panels go.
struct Pieces {
  std::vector<MatrixId> ids;
  std::vector<Target> targets;
};

Pieces pieces_of(const ExpertSpec& spec, int32_t layer, int32_t expert, std::byte* slot) {
  const Sections at = sections(spec);
  const int64_t hidden = spec.hidden, middle = spec.intermediate;
  const int64_t up = spec.gated ? 1 : 0, step = spec.gated ? 2 : 1;
  Pieces pieces;
  const auto add = [&](WeightKind kind, int64_t outputs, int64_t inputs, const Target& to) {
    pieces.ids.push_back({{layer, kind, expert}, outputs, inputs});
    pieces.targets.push_back(to);
  };
  std::byte* const gate_up = slot + at.gate_up;
  if (spec.gated) add(WeightKind::gate, middle, hidden, {gate_up, at.hidden_inputs, 0, 2});
  add(WeightKind::up, middle, hidden, {gate_up, at.hidden_inputs, up, step});
  add(WeightKind::down, hidden, middle, {slot + at.down, at.intermediate_inputs, 0, 1});
  if (!spec.bias) return pieces;
  std::byte* const gate_up_bias = slot + at.gate_up_bias;
  if (spec.gated) add(WeightKind::gate_bias, middle, 0, {gate_up_bias, 1, 0, 2});
  add(WeightKind::up_bias, middle, 0, {gate_up_bias, 1, up, step});
  add(WeightKind::down_bias, hidden, 0, {slot + at.down_bias, 1, 0, 1});
  return pieces;
}

// Into panels of floats; a bias is a column of f32.
Status pack_floats(FormatKind kind, const StoredMatrix& stored, const Target& to) {
  const bool is_bias = stored.of.inputs == 0;
  Matrix from{stored.dtype, stored.of.outputs, std::max<int64_t>(1, stored.of.inputs),
              stored.floats.get()};
  std::vector<float> widened;
  if (!stored.floats) {
    widened = in_f32(stored);
    from.dtype = DType::f32;
    from.bytes = reinterpret_cast<const std::byte*>(widened.data());
  }
  if (pack_matrix(is_bias ? FormatKind::f32 : kind, from, to)) return {};
  return error(StatusCode::out_of_range, {.tensor = to_string(stored.of.id.kind)},
               "a weight is beyond f16's 65504; load this model as bf16 or f32");
}

}  // namespace

Status pack_expert(const ExpertSpec& spec, const WeightSource& source, int32_t layer,
                   int32_t expert, std::byte* slot) {
  const Pieces pieces = pieces_of(spec, layer, expert, slot);
  MOE_ASSIGN_OR_RETURN(std::vector<StoredMatrix> stored, read_stored(source, pieces.ids));
  for (size_t i = 0; i < stored.size(); ++i) {
    const Target& to = pieces.targets[i];
    if (spec.format.kind != FormatKind::fp8_block || stored[i].of.inputs == 0) {
      MOE_RETURN_IF_ERROR(pack_floats(spec.format.kind, stored[i], to));
      continue;
    }
    MOE_ASSIGN_OR_RETURN(const QuantBuffer from,
                         in_format(source, std::move(stored[i]), spec.format));
    pack_fp8_panels(from.view(), to);
  }
  return {};
}

}  // namespace moe::cpu
