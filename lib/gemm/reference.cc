#include "gemm/reference.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "gemm/read_matrix.h"
#include "quant/half.h"

namespace moe {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double silu(double x) { return x * sigmoid(x); }
double clamp(double x, double limit) { return std::min(std::max(x, -limit), limit); }

// y[o] = w[o] . x + bias[o]
void multiply(const std::vector<float>& w, const std::vector<float>& bias, const double* x,
              int64_t outputs, int64_t inputs, double* y) {
  for (int64_t o = 0; o < outputs; ++o) {
    double sum = 0;
    for (int64_t i = 0; i < inputs; ++i) sum += w[o * inputs + i] * x[i];
    y[o] = bias.empty() ? sum : sum + bias[o];
  }
}

// Row `token` of `hidden` as doubles.
void load(const TensorView& hidden, int64_t token, std::vector<double>& x) {
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = load_float(hidden.dtype, hidden.data,
                      token * hidden.strides[0] + static_cast<int64_t>(i) * hidden.strides[1]);
}

void add(std::vector<double>& y, double weight, double* out) {
  for (size_t i = 0; i < y.size(); ++i) out[i] += weight * y[i];
}

// Adds the rows that chose candidate `id` to `out`.
Status add_candidate(const WeightSource& source, const LayerSpec& spec, int32_t id,
                     const TensorView& hidden, const Routing& routing, double* out) {
  ReferenceExpert expert;
  std::vector<double> x(spec.hidden()), y(spec.hidden());
  for (int64_t token = 0; token < routing.tokens; ++token) {
    for (int32_t place = 0; place < routing.top_k; ++place) {
      const int64_t pair = token * routing.top_k + place;
      if (routing.ids[pair] != id) continue;
      load(hidden, token, x);
      double weight = routing.weights[pair];
      if (id >= spec.router.num_experts) {  // a zero expert passes the row through
        add(x, weight, out + token * spec.hidden());
        continue;
      }
      if (expert.up.empty()) {
        MOE_ASSIGN_OR_RETURN(expert, read_reference_expert(spec.expert, source, spec.layer, id));
      }
      if (spec.router.weight_on_input) {
        for (double& value : x) value *= weight;
        weight = 1;
      }
      expert_forward_reference(expert, x.data(), y.data());
      add(y, weight, out + token * spec.hidden());
    }
  }
  return {};
}

// out = routed_scale * out + shared_scale * shared expert
Status add_shared(const WeightSource& source, const LayerSpec& spec, const TensorView& hidden,
                  double* out) {
  const SharedSpec& shared = *spec.shared;
  MOE_ASSIGN_OR_RETURN(const ReferenceExpert expert,
                       read_reference_expert(shared.expert, source, spec.layer, kSharedExpert));
  std::vector<float> gate;
  if (shared.sigmoid_gate) {
    MOE_ASSIGN_OR_RETURN(
        gate, read_f32(source, {spec.layer, WeightKind::shared_gate}, {1, spec.hidden()}));
  }
  std::vector<double> x(spec.hidden()), y(spec.hidden());
  for (int64_t token = 0; token < hidden.shape[0]; ++token, out += spec.hidden()) {
    load(hidden, token, x);
    expert_forward_reference(expert, x.data(), y.data());
    double scale = shared.shared_scale;
    if (shared.sigmoid_gate) {
      double logit = 0;
      multiply(gate, {}, x.data(), 1, spec.hidden(), &logit);
      scale *= sigmoid(logit);
    }
    for (int64_t i = 0; i < spec.hidden(); ++i) out[i] *= shared.routed_scale;
    add(y, scale, out);
  }
  return {};
}

}  // namespace

Result<DType> float_type(const WeightSource& source, const WeightId& id, const Dims& shape) {
  const Place place = {
      .file = source.name(), .tensor = to_string(id.kind), .layer = id.layer, .expert = id.expert};
  MOE_ASSIGN_OR_RETURN(const TensorShape stored, source.describe(id));
  if (stored.shape != shape)
    return invalid_argument(
        place, "shape is [{}]; the layer's spec says [{}]",
        fmt::join(stored.shape.extent, stored.shape.extent + stored.shape.rank, ", "),
        fmt::join(shape.extent, shape.extent + shape.rank, ", "));
  if (!is_float(stored.dtype))
    return error(StatusCode::unimplemented, place, "type is {}; wanted f32, bf16, f16 or f64",
                 to_string(stored.dtype));
  return stored.dtype;
}

Result<std::vector<float>> read_f32(const WeightSource& source, const WeightId& id,
                                    const Dims& shape) {
  MOE_ASSIGN_OR_RETURN(const DType dtype, float_type(source, id, shape));
  const int64_t count = shape.elements();
  std::vector<std::byte> bytes(static_cast<size_t>(count) * (bits_of(dtype) / 8));
  MOE_RETURN_IF_ERROR(source.read(id, MutableTensorView(bytes.data(), dtype, shape)));
  std::vector<float> values(static_cast<size_t>(count));
  load_row(dtype, bytes.data(), 1, count, values.data());
  return values;
}

Result<ReferenceExpert> read_reference_expert(const ExpertSpec& spec, const WeightSource& source,
                                              int32_t layer, int32_t expert) {
  ReferenceExpert out;
  out.spec = spec;
  const int64_t wide = spec.intermediate, narrow = spec.hidden;
  const auto matrix = [&](WeightKind kind, int64_t outputs, int64_t inputs,
                          std::vector<float>& to) -> Status {
    const WeightId id = {layer, kind, expert};
    if (is_quantised(spec.format.kind)) {
      MOE_ASSIGN_OR_RETURN(const QuantBuffer stored,
                           read_quantised(source, id, spec.format, outputs, inputs));
      to = dequantise(stored.view());
    } else {
      MOE_ASSIGN_OR_RETURN(to, read_dequantised(source, id, outputs, inputs));
    }
    return {};
  };
  const auto bias = [&](WeightKind kind, int64_t outputs, std::vector<float>& to) -> Status {
    MOE_ASSIGN_OR_RETURN(to, read_f32(source, {layer, kind, expert}, {outputs}));
    return {};
  };
  MOE_RETURN_IF_ERROR(matrix(WeightKind::up, wide, narrow, out.up));
  MOE_RETURN_IF_ERROR(matrix(WeightKind::down, narrow, wide, out.down));
  if (spec.gated) MOE_RETURN_IF_ERROR(matrix(WeightKind::gate, wide, narrow, out.gate));
  if (!spec.bias) return out;
  MOE_RETURN_IF_ERROR(bias(WeightKind::up_bias, wide, out.up_bias));
  MOE_RETURN_IF_ERROR(bias(WeightKind::down_bias, narrow, out.down_bias));
  if (spec.gated) MOE_RETURN_IF_ERROR(bias(WeightKind::gate_bias, wide, out.gate_bias));
  return out;
}

double activate_reference(const ExpertSpec& spec, double gate, double up) {
  const double g = spec.gated ? gate : up;
  const double factor = spec.gated ? up : 1;
  switch (spec.activation) {
    case Activation::silu: return silu(g) * factor;
    case Activation::gelu: return 0.5 * g * (1 + std::erf(g / std::sqrt(2.0))) * factor;
    case Activation::gelu_tanh:
      return 0.5 * g *
             (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (g + 0.044715 * g * g * g))) * factor;
    case Activation::relu: return std::max(g, 0.0) * factor;
    case Activation::relu2: return std::max(g, 0.0) * std::max(g, 0.0) * factor;
    case Activation::swiglu_oai: {
      const double low = std::min<double>(gate, spec.limit);
      return (clamp(up, spec.limit) + 1) * low * sigmoid(spec.alpha * low);
    }
    case Activation::swiglu_step:
      return std::min<double>(silu(gate), spec.limit) * clamp(up, spec.limit);
  }
  return 0;
}

void expert_forward_reference(const ReferenceExpert& expert, const double* x, double* y) {
  const ExpertSpec& spec = expert.spec;
  std::vector<double> gate(spec.gated ? spec.intermediate : 0), up(spec.intermediate);
  multiply(expert.up, expert.up_bias, x, spec.intermediate, spec.hidden, up.data());
  if (spec.gated)
    multiply(expert.gate, expert.gate_bias, x, spec.intermediate, spec.hidden, gate.data());
  for (int64_t i = 0; i < spec.intermediate; ++i)
    up[i] = activate_reference(spec, spec.gated ? gate[i] : 0, up[i]);
  multiply(expert.down, expert.down_bias, up.data(), spec.hidden, spec.intermediate, y);
}

Status block_forward_reference(const WeightSource& source, int32_t layer, const TensorView& hidden,
                               const Routing& routing, double* out) {
  const auto& layers = source.layers();
  const auto spec = std::find_if(layers.begin(), layers.end(),
                                 [&](const LayerSpec& s) { return s.layer == layer; });
  const Place place = {.file = source.name(), .layer = layer, .phase = Phase::compute};
  if (spec == layers.end()) return error(StatusCode::not_found, place, "no MoE layer {}", layer);
  if (hidden.shape != Dims{routing.tokens, spec->hidden()} || !is_float(hidden.dtype))
    return invalid_argument(place, "hidden is ({}, {}) {}; wanted ({}, {}) of a float type",
                            hidden.shape[0], hidden.shape[1], to_string(hidden.dtype),
                            routing.tokens, spec->hidden());
  return guarded(place, [&]() -> Status {
    std::fill_n(out, routing.tokens * spec->hidden(), 0.0);
    std::vector<int32_t> chosen(routing.ids, routing.ids + routing.tokens * routing.top_k);
    std::sort(chosen.begin(), chosen.end());
    chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
    for (int32_t id : chosen) {
      if (id < 0) continue;
      if (id >= spec->router.candidates())
        return invalid_argument(place, "expert {} was chosen; the layer has {} candidates", id,
                                spec->router.candidates());
      MOE_RETURN_IF_ERROR(add_candidate(source, *spec, id, hidden, routing, out));
    }
    return spec->shared ? add_shared(source, *spec, hidden, out) : Status();
  });
}

}  // namespace moe
