#include "gemm/problems.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "catch.h"
#include "core/error.h"
#include "gemm/reference.h"
#include "quant/half.h"
#include "quant/q8.h"
#include "quant/roles.h"

namespace moe::test {
namespace {

DType dtype_of(FormatKind kind) {
  return kind == FormatKind::f32 ? DType::f32 : kind == FormatKind::f16 ? DType::f16 : DType::bf16;
}

std::byte* aligned(std::vector<std::byte>& memory) {
  const auto at = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (64 - at % 64) % 64;
}

}  // namespace

RandomWeights::RandomWeights(const ExpertSpec& spec, int32_t experts, uint64_t seed) : seed_(seed) {
  LayerSpec layer;
  layer.layer = 3;
  layer.expert = spec;
  layer.router.num_experts = experts;
  layers_.push_back(layer);
}

Result<TensorShape> RandomWeights::describe(const WeightId& id) const {
  const ExpertSpec& spec = layers_[0].expert;
  const Format& format = spec.format;
  if (id.layer != 3) return Status(StatusCode::not_found, "no such layer");
  const WeightKind matrix = matrix_of(id.kind);
  DType type = dtype_of(format.kind);
  Dims shape = {spec.intermediate, spec.hidden};
  if (matrix == WeightKind::down) shape = {spec.hidden, spec.intermediate};
  if (matrix == WeightKind::down_bias) shape = {spec.hidden};
  if (matrix == WeightKind::gate_bias || matrix == WeightKind::up_bias) shape = {spec.intermediate};
  if (is_quantised(format.kind) && shape.rank == 2) {
    const int64_t rows = shape[0], columns = shape[1];
    if (id.kind == matrix) type = value_type(format), shape = value_shape(format, rows, columns);
    if (id.kind >= WeightKind::gate_scale) shape = scale_shape(format, rows, columns);
    if (id.kind >= WeightKind::gate_scale) type = format.scale;
    if (id.kind >= WeightKind::gate_zero) type = zero_type(format);
    if (id.kind >= WeightKind::gate_group) type = DType::i32, shape = {columns};
  }
  return TensorShape{type, shape, row_major(shape), Device::cpu()};
}

QuantBuffer RandomWeights::quantised(const WeightId& matrix) const {
  const ExpertSpec& spec = layers_[0].expert;
  const bool down = matrix.kind == WeightKind::down;
  const int64_t rows = down ? spec.hidden : spec.intermediate;
  const int64_t columns = down ? spec.intermediate : spec.hidden;
  const uint64_t of_expert = seed_ + 1000003 * static_cast<uint64_t>(matrix.expert + 2);
  std::mt19937_64 random(of_expert + static_cast<uint64_t>(matrix.kind));
  QuantBuffer out(spec.format, rows, columns);
  const bool fp8 = spec.format.kind == FormatKind::fp8_block;
  for (uint8_t& value : out.values) {
    value = static_cast<uint8_t>(random());
    if (fp8 && (value & 0x7f) == 0x7f) value ^= 1;  // no NaN
  }
  const float size = std::sqrt(3.0f / static_cast<float>(columns)) /
                     (spec.format.kind == FormatKind::int4 ? 8.0f : 128.0f);
  std::uniform_real_distribution<float> factor(0.5f, 1.5f);
  for (float& scale : out.scales)
    scale = round_scale(spec.format.scale, std::max(0x1p-13f, size * factor(random)));
  for (uint8_t& zero : out.zeros)
    zero = spec.format.kind == FormatKind::int4 ? 6 + random() % 4  // as quantisers choose them
                                                : static_cast<uint8_t>(random() % 32 - 16);
  for (size_t i = 0; i < out.groups.size(); ++i)
    out.groups[i] = static_cast<int32_t>(i) / std::max(1, spec.format.group);
  std::mt19937_64 order(of_expert + down);  // the same for gate and up
  std::shuffle(out.groups.begin(), out.groups.end(), order);
  return out;
}

Status RandomWeights::read(const WeightId& id, const MutableTensorView& out) const {
  MOE_ASSIGN_OR_RETURN(const TensorShape stored, describe(id));
  if (stored.shape != out.shape || stored.dtype != out.dtype)
    return Status(StatusCode::invalid_argument, "read() with a shape that is not describe()'s");
  const WeightKind kind = matrix_of(id.kind);
  if (is_quantised(layers_[0].expert.format.kind) && kind <= WeightKind::down) {
    if (out.strides != row_major(out.shape))
      return Status(StatusCode::unimplemented, "strides of a quantised matrix");
    const QuantBuffer made = quantised({id.layer, kind, id.expert});
    if (id.kind == kind) std::memcpy(out.data, made.values.data(), made.values.size());
    if (id.kind >= WeightKind::gate_scale && id.kind <= WeightKind::down_scale)
      store_row(out.dtype, made.scales.data(), out.shape.elements(), out.data, 1);
    if (id.kind >= WeightKind::gate_zero && id.kind <= WeightKind::down_zero)
      std::memcpy(out.data, made.zeros.data(), made.zeros.size());
    if (id.kind >= WeightKind::gate_group)
      std::memcpy(out.data, made.groups.data(), made.groups.size() * sizeof(int32_t));
    return {};
  }
  std::mt19937_64 random(seed_ + 1000003 * static_cast<uint64_t>(id.expert + 2) +
                         static_cast<uint64_t>(id.kind));
  const bool matrix = out.shape.rank == 2;
  const float scale = matrix ? std::sqrt(3.0f / static_cast<float>(out.shape[1])) : 0.5f;
  std::uniform_real_distribution<float> value(-scale, scale);
  const int64_t columns = matrix ? out.shape[1] : 1;
  for (int64_t row = 0; row < out.shape[0]; ++row)
    for (int64_t column = 0; column < columns; ++column)
      store_float(out.dtype, out.data,
                  row * out.strides[0] + (matrix ? column * out.strides[1] : 0), value(random));
  return {};
}

std::span<const Format> all_formats() {
  using enum FormatKind;
  static constexpr Format kAll[] = {
      {f32},
      {f16},
      {bf16},
      {fp8_block},
      {fp8_block, 128},
      {fp8_block, 32, DType::bf16},
      {int8},
      {int8, 0, DType::bf16, true},
      {int8, 32, DType::f16},
      {int8, 128, DType::bf16, false, true},
      {int4, 0, DType::f16},
      {int4, 32, DType::bf16},
      {int4, 32, DType::f16, true, true},
      {int4, 64, DType::f32, true},
      {int4, 96, DType::bf16, false, true},
      {int4, 128, DType::f16, true},
      {int4, 128, DType::f16},
  };
  return kAll;
}

std::string describe(const Problem& p) {
  return fmt::format(
      "hidden {} intermediate {} {} {} bias {} format {} experts {} top_k {} tokens {} rows {} "
      "padding {} input_weights {} one_expert {} seed {}",
      p.spec.hidden, p.spec.intermediate, to_string(p.spec.activation),
      p.spec.gated ? "gated" : "plain", p.spec.bias, format_name(p.spec.format), p.experts, p.top_k,
      p.tokens, to_string(p.rows), p.row_padding, p.input_weights, p.one_expert, p.seed);
}

TensorView Prepared::hidden_view() const {
  const Dims shape = {problem.tokens, problem.spec.hidden};
  const Dims strides = {problem.spec.hidden + problem.row_padding, 1};
  return {hidden.data(), problem.rows, shape, strides, Device::cpu()};
}

Prepared prepare(const Problem& problem) {
  Prepared made;
  made.problem = problem;
  made.weights = std::make_unique<RandomWeights>(problem.spec, problem.experts, problem.seed);
  std::mt19937_64 random(problem.seed);
  std::normal_distribution<float> normal;

  const int64_t elements = problem.tokens * (problem.spec.hidden + problem.row_padding);
  made.hidden.resize(static_cast<size_t>(elements) * bits_of(problem.rows) / 8);
  for (int64_t i = 0; i < elements; ++i)
    store_float(problem.rows, made.hidden.data(), i, normal(random));

  const int64_t pairs = problem.tokens * problem.top_k;
  made.ids.assign(pairs, -1);
  std::vector<int32_t> order(problem.experts);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t token = 0; token < problem.tokens; ++token) {
    std::shuffle(order.begin() + problem.one_expert, order.end(), random);
    for (int32_t place = 0; place < problem.top_k && place < problem.experts; ++place)
      if (problem.one_expert ? place == 0 : random() % 9 != 0)  // some choices are dropped
        made.ids[token * problem.top_k + place] = order[place];
  }
  if (problem.input_weights)
    for (int64_t p = 0; p < pairs; ++p) made.input_weights.push_back(0.2f + 0.1f * (p % 7));

  for (int32_t expert = 0; expert < problem.experts; ++expert) {
    ExpertGroup group{.expert = expert, .first = static_cast<int64_t>(made.pairs.size())};
    for (int64_t p = 0; p < pairs; ++p)
      if (made.ids[p] == expert) made.pairs.push_back(p);
    group.count = static_cast<int64_t>(made.pairs.size()) - group.first;
    if (group.count > 0) made.groups.push_back(group);
  }
  return made;
}

Prepared alone(const Prepared& from, int64_t token) {
  Prepared one;
  one.problem = from.problem;
  one.problem.tokens = 1;
  one.weights =
      std::make_unique<RandomWeights>(from.problem.spec, from.problem.experts, from.problem.seed);
  const int64_t row =
      (from.problem.spec.hidden + from.problem.row_padding) * (bits_of(from.problem.rows) / 8);
  one.hidden.assign(from.hidden.begin() + token * row, from.hidden.begin() + (token + 1) * row);
  const int32_t top_k = from.problem.top_k;
  one.ids.assign(from.ids.begin() + token * top_k, from.ids.begin() + (token + 1) * top_k);
  for (int32_t expert = 0; expert < from.problem.experts; ++expert)
    for (int32_t place = 0; place < top_k; ++place)
      if (one.ids[place] == expert) {
        one.groups.push_back({nullptr, expert, static_cast<int64_t>(one.pairs.size()), 1});
        one.pairs.push_back(place);
      }
  return one;
}

Slots::Slots(const ExpertGemm& gemm, const Prepared& prepared) {
  const SlotLayout layout = gemm.layout(prepared.problem.spec);
  REQUIRE(layout.alignment <= 64);
  for (const ExpertGroup& group : prepared.groups) {
    memory_.emplace_back(layout.bytes + 192, std::byte{0xff});
    std::byte* slot = aligned(memory_.back());
    const Status status =
        gemm.pack(prepared.problem.spec, *prepared.weights, 3, group.expert, slot);
    INFO(status.message());
    REQUIRE(status.ok());
    for (size_t i = 0; i < 64; ++i) REQUIRE(slot[layout.bytes + i] == std::byte{0xff});
    slots_[group.expert] = slot;
  }
}

bool is_poison(float value) { return detail::bits_of_f32(value) == 0xffffffff; }

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<float> run(const ExpertGemm& gemm, const Prepared& prepared, const Slots& slots,
                       const RunOptions& options) {
  const Problem& problem = prepared.problem;
  std::unique_ptr<Executor> executor;
  if (options.threads > 0) {
    auto made = make_executor(options.threads);
    REQUIRE(made.ok());
    executor = *std::move(made);
  }
  std::vector<ExpertGroup> groups = prepared.groups;
  int64_t most = 0;
  for (ExpertGroup& group : groups) {
    group.slot = slots.slot(group.expert);
    most = std::max(most, group.count);
  }
  const int64_t pairs = options.sequential ? most : static_cast<int64_t>(prepared.pairs.size());
  const int64_t together = options.sequential ? 1 : static_cast<int64_t>(groups.size());
  const size_t bytes =
      gemm.workspace_bytes(problem.spec, pairs, together, std::max(1, options.threads));
  std::vector<std::byte> workspace(bytes + 128, std::byte{0xff});
  std::vector<float> out(problem.tokens * problem.top_k * problem.spec.hidden,
                         detail::f32_of_bits(0xffffffff));

  ExpertBatch batch;
  batch.hidden = prepared.hidden_view();
  batch.top_k = problem.top_k;
  batch.pairs = prepared.pairs.data();
  batch.input_weights = problem.input_weights ? prepared.input_weights.data() : nullptr;
  batch.out = out.data();
  batch.executor = executor.get();
  batch.workspace = {aligned(workspace), bytes};
  const size_t step = options.sequential ? 1 : std::max<size_t>(1, groups.size());
  for (size_t first = 0; first < groups.size(); first += step) {
    batch.groups = std::span(groups).subspan(first, step);
    const Status status = gemm.run(problem.spec, batch);
    INFO(status.message());
    REQUIRE(status.ok());
  }
  for (size_t i = 0; i < 64; ++i) REQUIRE(batch.workspace.data()[bytes + i] == std::byte{0xff});
  return out;
}

namespace {

// `row` as q8 says it, in the columns of `groups`: groups of `size` one behind the other, each
// padded to whole ones; no groups: as it is.
void round_to_q8(const std::vector<int32_t>& groups, int64_t size, std::vector<double>* row) {
  std::vector<int64_t> inputs(row->size());  // by column; -1: padding
  std::iota(inputs.begin(), inputs.end(), int64_t{0});
  if (!groups.empty()) {
    const int64_t count = (static_cast<int64_t>(row->size()) + size - 1) / size;
    inputs.assign(static_cast<size_t>(count * size), -1);
    std::vector<int64_t> used(static_cast<size_t>(count));
    for (size_t i = 0; i < groups.size(); ++i)
      inputs[groups[i] * size + used[groups[i]]++] = static_cast<int64_t>(i);
  }
  inputs.resize((inputs.size() + kQ8Block - 1) / kQ8Block * kQ8Block, -1);
  for (size_t begin = 0; begin < inputs.size(); begin += kQ8Block) {
    float values[kQ8Block];
    int8_t q[kQ8Block];
    for (int64_t i = 0; i < kQ8Block; ++i)
      values[i] = inputs[begin + i] < 0 ? 0.0f : static_cast<float>((*row)[inputs[begin + i]]);
    const double scale = encode_q8(values, q);
    for (int64_t i = 0; i < kQ8Block; ++i)
      if (inputs[begin + i] >= 0) (*row)[inputs[begin + i]] = q[i] * scale;
  }
}

// What groups the inputs of gate and up (or of down); empty without act-order.
std::vector<int32_t> groups_of_inputs(const Prepared& prepared, int32_t expert, bool down) {
  const ExpertSpec& spec = prepared.problem.spec;
  if (!spec.format.act_order) return {};
  std::vector<int32_t> groups(down ? spec.intermediate : spec.hidden);
  const WeightId id = {3, down ? WeightKind::down_group : WeightKind::up_group, expert};
  const Dims shape = {static_cast<int64_t>(groups.size())};
  REQUIRE(prepared.weights->read(id, MutableTensorView(groups.data(), DType::i32, shape)).ok());
  return groups;
}

// y[o] = w[o] . x + bias[o]
void multiply(const std::vector<float>& w, const std::vector<float>& bias,
              const std::vector<double>& x, std::vector<double>* y) {
  for (size_t o = 0; o < y->size(); ++o) {
    double sum = bias.empty() ? 0 : bias[o];
    for (size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(w[o * x.size() + i]) * x[i];
    (*y)[o] = sum;
  }
}

// The expert on rows that are rounded to q8 before each product.
void forward_q8(const Prepared& prepared, int32_t id, const ReferenceExpert& expert,
                std::vector<double> x, std::vector<double>* y) {
  const ExpertSpec& spec = expert.spec;
  std::vector<double> gate(spec.intermediate), up(spec.intermediate);
  round_to_q8(groups_of_inputs(prepared, id, false), spec.format.group, &x);
  multiply(expert.up, expert.up_bias, x, &up);
  if (spec.gated) multiply(expert.gate, expert.gate_bias, x, &gate);
  for (size_t i = 0; i < up.size(); ++i) up[i] = activate_reference(spec, gate[i], up[i]);
  round_to_q8(groups_of_inputs(prepared, id, true), spec.format.group, &up);
  multiply(expert.down, expert.down_bias, up, y);
}

}  // namespace

double error_against_reference(const Prepared& prepared, const std::vector<float>& out, Rows rows) {
  const Problem& problem = prepared.problem;
  const int64_t hidden = problem.spec.hidden;
  std::vector<double> x(hidden), y(hidden);
  double difference = 0, norm = 0;
  std::vector<bool> seen(prepared.ids.size());
  for (const ExpertGroup& group : prepared.groups) {
    const auto expert = read_reference_expert(problem.spec, *prepared.weights, 3, group.expert);
    REQUIRE(expert.ok());
    for (int64_t i = group.first; i < group.first + group.count; ++i) {
      const int64_t pair = prepared.pairs[i];
      seen[pair] = true;
      for (int64_t j = 0; j < hidden; ++j) {
        const int64_t at = pair / problem.top_k * (hidden + problem.row_padding) + j;
        x[j] = load_float(problem.rows, prepared.hidden.data(), at);
        if (problem.input_weights) x[j] *= prepared.input_weights[pair];
      }
      if (rows == Rows::q8)
        forward_q8(prepared, group.expert, *expert, x, &y);
      else
        expert_forward_reference(*expert, x.data(), y.data());
      for (int64_t j = 0; j < hidden; ++j) {
        const double d = out[pair * hidden + j] - y[j];
        difference += d * d;
        norm += y[j] * y[j];
      }
    }
  }
  for (size_t pair = 0; pair < seen.size(); ++pair)
    for (int64_t j = 0; j < hidden && !seen[pair]; ++j)
      if (!is_poison(out[pair * hidden + j])) return std::numeric_limits<double>::infinity();
  if (difference == 0) return 0;
  return std::sqrt(difference / norm);
}

}  // namespace moe::test
