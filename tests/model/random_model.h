// Small models with random shapes, rules and weights, held in memory.
#pragma once

#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "catch.h"
#include "moe/weights.h"
#include "quant/formats.h"
#include "quant/half.h"

namespace moe::test {

// Random numbers from one seed.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  bool chance(double probability) { return std::bernoulli_distribution(probability)(engine_); }
  float normal(float scale = 1) { return std::normal_distribution<float>(0, scale)(engine_); }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
  }

 private:
  std::mt19937_64 engine_;
};

// Owns the weights that its MemoryWeights views.
class RandomModel {
 public:
  RandomModel(const std::vector<LayerSpec>& specs, Random& random, DType dtype = DType::f32)
      : source_(specs), random_(random), dtype_(dtype) {
    for (const LayerSpec& spec : specs) fill(spec);
  }
  const WeightSource& source() const { return source_; }
  std::vector<std::byte>& bytes(const WeightId& id) { return *where_.at(key(id)); }

 private:
  using Key = std::tuple<int32_t, WeightKind, int32_t>;
  static Key key(const WeightId& id) { return {id.layer, id.kind, id.expert}; }

  std::byte* room(const WeightId& id, const Dims& shape, DType dtype) {
    auto& bytes = storage_.emplace_back(static_cast<size_t>(shape.elements() * bits_of(dtype) / 8));
    where_[key(id)] = &bytes;
    const Status status = source_.set(id, {bytes.data(), dtype, shape});
    INFO(status.message());
    REQUIRE(status.ok());
    return bytes.data();
  }
  void add(const WeightId& id, const Dims& shape, float scale, DType dtype) {
    std::byte* to = room(id, shape, dtype);
    for (int64_t i = 0; i < shape.elements(); ++i) store_float(dtype, to, i, random_.normal(scale));
  }
  // In the expert's own format.
  void add_matrix(const WeightId& id, const Format& format, const Dims& shape, float scale) {
    if (format.kind != FormatKind::fp8_block) return add(id, shape, scale, dtype_);
    std::vector<float> values(static_cast<size_t>(shape.elements()));
    for (float& value : values) value = random_.normal(scale);
    QuantBuffer packed(format, shape[0], shape[1]);
    find_format(format.kind)->encode(values.data(), &packed);
    std::memcpy(room(id, shape, DType::f8_e4m3), packed.values.data(), packed.values.size());
    const int place = static_cast<int>(id.kind) - static_cast<int>(WeightKind::gate);
    const WeightId scales = {id.layer, static_cast<WeightKind>(int(WeightKind::gate_scale) + place),
                             id.expert};
    const Dims wanted = scale_shape(format, shape[0], shape[1]);
    std::byte* to = room(scales, wanted, format.scale);
    for (int64_t i = 0; i < wanted.elements(); ++i)
      store_float(format.scale, to, i, packed.scales[static_cast<size_t>(i)]);
  }
  void add_expert(int32_t layer, int32_t expert, const ExpertSpec& e) {
    const float in = 1 / std::sqrt(static_cast<float>(e.hidden));
    const float mid = 1 / std::sqrt(static_cast<float>(e.intermediate));
    const Dims up = {e.intermediate, e.hidden}, down = {e.hidden, e.intermediate};
    if (e.gated) add_matrix({layer, WeightKind::gate, expert}, e.format, up, in);
    add_matrix({layer, WeightKind::up, expert}, e.format, up, in);
    add_matrix({layer, WeightKind::down, expert}, e.format, down, mid);
    if (!e.bias) return;
    if (e.gated) add({layer, WeightKind::gate_bias, expert}, {e.intermediate}, 0.5f, dtype_);
    add({layer, WeightKind::up_bias, expert}, {e.intermediate}, 0.5f, dtype_);
    add({layer, WeightKind::down_bias, expert}, {e.hidden}, 0.5f, dtype_);
  }
  void fill(const LayerSpec& spec) {
    add({spec.layer, WeightKind::router_weight}, {spec.router.candidates(), spec.hidden()},
        1 / std::sqrt(static_cast<float>(spec.hidden())), DType::f32);
    for (int32_t e = 0; e < spec.router.num_experts; ++e) add_expert(spec.layer, e, spec.expert);
    if (!spec.shared) return;
    add_expert(spec.layer, kSharedExpert, spec.shared->expert);
    if (spec.shared->sigmoid_gate)
      add({spec.layer, WeightKind::shared_gate}, {1, spec.hidden()}, 0.3f, DType::f32);
  }

  MemoryWeights source_;
  Random& random_;
  DType dtype_;
  std::deque<std::vector<std::byte>> storage_;
  std::map<Key, std::vector<std::byte>*> where_;
};

inline FormatKind format_of(DType dtype) {
  if (dtype == DType::f32) return FormatKind::f32;
  return dtype == DType::f16 ? FormatKind::f16 : FormatKind::bf16;
}

// A layer of random shape; `dtype` is that of its experts.
inline LayerSpec random_layer(Random& random, int32_t layer, DType dtype, int32_t experts,
                              int32_t top_k) {
  LayerSpec spec;
  spec.layer = layer;
  spec.router.num_experts = experts;
  spec.router.num_zero_experts =
      random.chance(0.2) ? static_cast<int32_t>(random.between(1, 4)) : 0;
  spec.router.top_k = top_k;
  spec.router.scoring = random.one_of({Scoring::softmax, Scoring::sigmoid, Scoring::sqrt_softplus});
  spec.router.normalize = random.one_of({Normalize::none, Normalize::sum_plus_epsilon});
  spec.router.epsilon = 1e-20f;
  spec.router.scaling = random.one_of({1.0f, 2.5f});
  spec.router.weight_on_input = random.chance(0.15);
  ExpertSpec& e = spec.expert;
  e.hidden = random.between(1, 70);
  e.intermediate = random.between(1, 70);
  e.activation = random.one_of({Activation::silu, Activation::gelu, Activation::gelu_tanh,
                                Activation::relu, Activation::relu2, Activation::swiglu_oai});
  e.gated = e.activation == Activation::swiglu_oai || random.chance(0.8);
  e.bias = random.chance(0.3);
  e.format = {format_of(dtype), 0};
  if (random.chance(0.4)) {
    spec.shared.emplace();
    spec.shared->expert = e;
    spec.shared->expert.intermediate = random.between(1, 70);
    spec.shared->sigmoid_gate = random.chance(0.5);
    if (random.chance(0.3)) spec.shared->routed_scale = spec.shared->shared_scale = 0.5f;
  }
  return spec;
}

// (rows, columns) of `dtype`, `padding` elements between rows, filled with normal numbers.
struct Rows {
  Rows(Random& random, int64_t rows, int64_t columns, DType type, int64_t padding = 0)
      : dtype(type),
        shape{rows, columns},
        stride(columns + padding),
        bytes(static_cast<size_t>((rows * stride + 1) * bits_of(type) / 8)) {
    for (int64_t i = 0; i < rows * stride; ++i) store_float(type, bytes.data(), i, random.normal());
  }
  TensorView view() const { return {bytes.data(), dtype, shape, {stride, 1}, {}}; }
  MutableTensorView mutable_view() { return {bytes.data(), dtype, shape, {stride, 1}, {}}; }
  float at(int64_t row, int64_t column) const {
    return load_float(dtype, bytes.data(), row * stride + column);
  }
  void poison() {
    for (int64_t i = 0; i < shape[0] * stride; ++i) store_float(dtype, bytes.data(), i, NAN);
  }

  DType dtype;
  Dims shape;
  int64_t stride;
  std::vector<std::byte> bytes;
};

}  // namespace moe::test
