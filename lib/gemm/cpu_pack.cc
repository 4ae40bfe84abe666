#include "gemm/cpu_pack.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"
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
  std::vector<std::byte> bytes;

  const std::byte* at(int64_t output, int64_t input) const {
    return bytes.data() + (output * inputs + input) * (bits_of(dtype) / 8);
  }
};

Result<Matrix> read_matrix(const WeightSource& source, const WeightId& id, int64_t outputs,
                           int64_t inputs) {
  Matrix matrix{.outputs = outputs, .inputs = inputs};
  const Dims shape = {outputs, inputs};
  MOE_ASSIGN_OR_RETURN(matrix.dtype, float_type(source, id, shape));
  matrix.bytes.resize(static_cast<size_t>(outputs * inputs) * (bits_of(matrix.dtype) / 8));
  MOE_RETURN_IF_ERROR(source.read(id, MutableTensorView(matrix.bytes.data(), matrix.dtype, shape)));
  return matrix;
}

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

// Outputs [first, first + kPanel) of `from`; what lies outside of it stays as it is.
template <class To>
bool pack_panel(const Matrix& from, int64_t first, typename To::Type* panel) {
  typename To::Type block[kBlock];
  bool fits = true;
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
    fits &= pack_panel<To>(from, first, panels + panel * kPanel * to.panel_inputs);
  }
  return fits;
}

bool pack_matrix(FormatKind kind, const Matrix& from, const Target& to) {
  if (kind == FormatKind::f32) return pack_panels<ToF32>(from, to);
  if (kind == FormatKind::f16) return pack_panels<ToF16>(from, to);
  return pack_panels<ToBf16>(from, to);
}

}  // namespace

Status pack_expert(const ExpertSpec& spec, const WeightSource& source, int32_t layer,
                   int32_t expert, std::byte* slot) {
  const Sections at = sections(spec);
  std::memset(slot, 0, static_cast<size_t>(at.bytes));

  const auto matrix = [&](WeightKind kind, int64_t outputs, int64_t inputs,
                          const Target& to) -> Status {
    MOE_ASSIGN_OR_RETURN(const Matrix from,
                         read_matrix(source, {layer, kind, expert}, outputs, inputs));
    if (pack_matrix(spec.format.kind, from, to)) return {};
    return error(StatusCode::out_of_range, {.tensor = to_string(kind)},
                 "a weight is beyond f16's 65504; load this model as bf16 or f32");
  };
  const Target gate = {slot + at.gate_up, at.hidden_inputs, 0, 2};
  const Target up = {slot + at.gate_up, at.hidden_inputs, spec.gated ? 1 : 0, spec.gated ? 2 : 1};
  const Target down = {slot + at.down, at.intermediate_inputs, 0, 1};
  if (spec.gated)
    MOE_RETURN_IF_ERROR(matrix(WeightKind::gate, spec.intermediate, spec.hidden, gate));
  MOE_RETURN_IF_ERROR(matrix(WeightKind::up, spec.intermediate, spec.hidden, up));
  MOE_RETURN_IF_ERROR(matrix(WeightKind::down, spec.hidden, spec.intermediate, down));
  if (!spec.bias) return {};

  const auto bias = [&](WeightKind kind, int64_t outputs, const Target& to) -> Status {
    MOE_ASSIGN_OR_RETURN(const std::vector<float> from,
                         read_f32(source, {layer, kind, expert}, {outputs}));
    auto* section = reinterpret_cast<float*>(to.section);
    for (int64_t i = 0; i < outputs; ++i)
      section[(to.offset + i / kPanel * to.step) * kPanel + i % kPanel] = from[i];
    return {};
  };
  const Target gate_bias = {slot + at.gate_up_bias, 1, gate.offset, gate.step};
  const Target up_bias = {slot + at.gate_up_bias, 1, up.offset, up.step};
  const Target down_bias = {slot + at.down_bias, 1, 0, 1};
  if (spec.gated) MOE_RETURN_IF_ERROR(bias(WeightKind::gate_bias, spec.intermediate, gate_bias));
  MOE_RETURN_IF_ERROR(bias(WeightKind::up_bias, spec.intermediate, up_bias));
  return bias(WeightKind::down_bias, spec.hidden, down_bias);
}

}  // namespace moe::cpu
