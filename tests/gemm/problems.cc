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
  Dims shape;
  if (id.layer != 3) return Status(StatusCode::not_found, "no such layer");
  if (id.kind == WeightKind::gate || id.kind == WeightKind::up)
    shape = {spec.intermediate, spec.hidden};
  else if (id.kind == WeightKind::down)
    shape = {spec.hidden, spec.intermediate};
  else if (id.kind == WeightKind::down_bias)
    shape = {spec.hidden};
  else
    shape = {spec.intermediate};
  return TensorShape{dtype_of(spec.format.kind), shape, row_major(shape), Device::cpu()};
}

Status RandomWeights::read(const WeightId& id, const MutableTensorView& out) const {
  MOE_ASSIGN_OR_RETURN(const TensorShape stored, describe(id));
  if (stored.shape != out.shape || stored.dtype != out.dtype)
    return Status(StatusCode::invalid_argument, "read() with a shape that is not describe()'s");
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

std::string describe(const Problem& p) {
  return fmt::format(
      "hidden {} intermediate {} {} {} bias {} format {} experts {} top_k {} tokens {} rows {} "
      "padding {} input_weights {} one_expert {} seed {}",
      p.spec.hidden, p.spec.intermediate, to_string(p.spec.activation),
      p.spec.gated ? "gated" : "plain", p.spec.bias, to_string(p.spec.format.kind), p.experts,
      p.top_k, p.tokens, to_string(p.rows), p.row_padding, p.input_weights, p.one_expert, p.seed);
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

double error_against_reference(const Prepared& prepared, const std::vector<float>& out) {
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
