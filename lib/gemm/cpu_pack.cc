#include "gemm/cpu_pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "core/error.h"
#include "gemm/read_matrix.h"
#include "gemm/reference.h"
#include "quant/half.h"

namespace moe::cpu {
namespace {

// Elements converted at a time: the panel they go to stays in the L1 cache.
constexpr int64_t kBlock = 256;

// A canonical matrix [outputs][inputs] in the source's own element type.
struct Matrix {
  DType dtype = DType::f32;
  int64_t outputs = 0;
  int64_t inputs = 0;
  std::unique_ptr<std::byte[]> bytes;

  Matrix() = default;
  Matrix(DType type, int64_t rows, int64_t columns)
      : dtype(type),
        outputs(rows),
        inputs(columns),
        bytes(std::make_unique_for_overwrite<std::byte[]>(
            static_cast<size_t>(rows * columns * (bits_of(type) / 8)))) {}

  const std::byte* at(int64_t output, int64_t input) const {
    return bytes.get() + (output * inputs + input) * (bits_of(dtype) / 8);
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

// A whole panel of bf16 that is stored as bf16: 16 rows side by side, two inputs of each
// at a time, so that stores run on and loads follow 16 streams. Inputs are even.
void interleave_pairs(const Matrix& from, int64_t first, uint16_t* panel) {
  const std::byte* rows[kPanel];
  for (int64_t lane = 0; lane < kPanel; ++lane) rows[lane] = from.at(first + lane, 0);
  for (int64_t i = 0; i < from.inputs; i += 2, panel += 2 * kPanel)
    for (int64_t lane = 0; lane < kPanel; ++lane)
      std::memcpy(panel + 2 * lane, rows[lane] + 2 * i, 4);
}

// Outputs [first, first + kPanel) of `from`. What a panel has beyond them is zero.
template <class To>
bool pack_panel(const Matrix& from, int64_t first, int64_t panel_inputs, typename To::Type* panel) {
  if constexpr (To::kSame == DType::bf16)
    if (from.dtype == DType::bf16 && first + kPanel <= from.outputs && from.inputs % 2 == 0)
      return interleave_pairs(from, first, panel), true;
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
};

template <class To>
bool pack_panels(const Matrix& from, const Target& to) {
  auto* panels = reinterpret_cast<typename To::Type*>(to.section);
  bool fits = true;
  for (int64_t first = 0; first < from.outputs; first += kPanel) {
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

// One tensor of the expert and where its panels go.
struct Piece {
  WeightKind kind;
  int64_t outputs;
  int64_t inputs;  // 0: a bias, which is a column of f32 in a slot
  Target to;
  Matrix from;

  bool is_bias() const { return inputs == 0; }
  Dims shape() const { return is_bias() ? Dims{outputs} : Dims{outputs, inputs}; }
};

std::vector<Piece> pieces_of(const ExpertSpec& spec, const Sections& at, std::byte* slot) {
  const int64_t hidden = spec.hidden, middle = spec.intermediate;
  const int64_t up = spec.gated ? 1 : 0, step = spec.gated ? 2 : 1;
  std::vector<Piece> pieces;
  const auto add = [&](WeightKind kind, int64_t outputs, int64_t inputs, const Target& to) {
    pieces.push_back({kind, outputs, inputs, to, {}});
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

// Zeroes what no tensor writes: the other half of a pair whose first half is a section's last
// panel.
void zero_odd_panels(const ExpertSpec& spec, const Sections& at, std::byte* slot) {
  const auto zero = [&](int64_t section, int64_t outputs, int64_t pair_bytes) {
    const int64_t panels = (outputs + kPanel - 1) / kPanel;
    const int64_t bytes = pair_bytes / 2;
    if (panels % 2) std::memset(slot + section + panels * bytes, 0, static_cast<size_t>(bytes));
  };
  constexpr int64_t kBiasPair = kPair * int64_t{sizeof(float)};
  if (!spec.gated) zero(at.gate_up, spec.intermediate, at.gate_up_pair_bytes);
  zero(at.down, spec.hidden, at.down_pair_bytes);
  if (!spec.bias) return;
  if (!spec.gated) zero(at.gate_up_bias, spec.intermediate, kBiasPair);
  zero(at.down_bias, spec.hidden, kBiasPair);
}

// Codes in pairs of inputs as bf16's; behind them every output's scale of every group.
void pack_fp8_panels(const QuantMatrix& from, const Target& to) {
  const int64_t pair_size = pair_bytes(from.format, to.panel_inputs);
  const int64_t groups = groups_of(from.format, from.columns);
  const int64_t high = std::max(from.format.group, 1);  // outputs that share a scale
  for (int64_t output = 0; output < from.rows; ++output) {
    const int64_t panel = to.offset + output / kPanel * to.step, lane = output % kPanel;
    std::byte* pair = to.section + panel / 2 * pair_size;
    auto* codes = reinterpret_cast<uint8_t*>(pair) + panel % 2 * kPanel * to.panel_inputs;
    const uint8_t* row = from.values + output * from.columns;
    for (int64_t i = 0; i < from.columns; ++i) codes[position<ToBf16>(i, lane)] = row[i];
    auto* scales = reinterpret_cast<float*>(pair + to.panel_inputs * kPair);
    for (int64_t g = 0; g < groups; ++g)
      scales[g * kPair + panel % 2 * kPanel + lane] = from.scales[output / high * groups + g];
  }
}

// A matrix of a quantised source, widened to f32.
Result<Matrix> widened(const WeightSource& source, const WeightId& id, int64_t outputs,
                       int64_t inputs) {
  MOE_ASSIGN_OR_RETURN(const std::vector<float> values,
                       read_dequantised(source, id, outputs, inputs));
  Matrix matrix(DType::f32, outputs, inputs);
  std::memcpy(matrix.bytes.get(), values.data(), values.size() * sizeof(float));
  return matrix;
}

}  // namespace

Status pack_expert(const ExpertSpec& spec, const WeightSource& source, int32_t layer,
                   int32_t expert, std::byte* slot) {
  const Sections at = sections(spec);
  std::vector<Piece> pieces = pieces_of(spec, at, slot);
  std::vector<WeightRead> reads;
  const bool fp8 = spec.format.kind == FormatKind::fp8_block;
  const bool quantised = is_quantised(source_format(source, layer, expert).kind);
  if (fp8) std::memset(slot, 0, static_cast<size_t>(at.bytes));
  for (Piece& piece : pieces) {
    const WeightId id{layer, piece.kind, expert};
    if (fp8 && !piece.is_bias()) {
      MOE_ASSIGN_OR_RETURN(const QuantBuffer from,
                           read_quantised(source, id, spec.format, piece.outputs, piece.inputs));
      pack_fp8_panels(from.view(), piece.to);
      continue;
    }
    if (quantised && !piece.is_bias()) {
      MOE_ASSIGN_OR_RETURN(piece.from, widened(source, id, piece.outputs, piece.inputs));
      continue;
    }
    MOE_ASSIGN_OR_RETURN(const DType dtype, float_type(source, id, piece.shape()));
    piece.from = Matrix(dtype, piece.outputs, std::max<int64_t>(1, piece.inputs));
    reads.push_back({id, {piece.from.bytes.get(), piece.from.dtype, piece.shape()}});
  }
  MOE_RETURN_IF_ERROR(source.read_all(reads));
  for (const Piece& piece : pieces) {
    if (fp8 && !piece.is_bias()) continue;
    const FormatKind kind = piece.is_bias() ? FormatKind::f32 : spec.format.kind;
    if (!pack_matrix(kind, piece.from, piece.to))
      return error(StatusCode::out_of_range, {.tensor = to_string(piece.kind)},
                   "a weight is beyond f16's 65504; load this model as bf16 or f32");
  }
  if (!fp8) zero_odd_panels(spec, at, slot);
  return {};
}

}  // namespace moe::cpu
