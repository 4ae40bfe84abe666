// LayerSpec's checks, weights in memory, and the values of synthetic models.
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <set>
#include <vector>

#include "catch.h"
#include "checkpoint/synthetic_value.h"
#include "moe/checkpoint.h"
#include "temporary_directory.h"

using namespace moe;

namespace {

LayerSpec layer_spec() {
  LayerSpec spec;
  spec.layer = 3;
  spec.router.num_experts = 4;
  spec.router.top_k = 2;
  spec.expert = {.hidden = 6, .intermediate = 5, .format = {FormatKind::f32}};
  spec.shared = SharedSpec{.expert = spec.expert};
  return spec;
}

void refused(const LayerSpec& spec, const char* word) {
  const Status status = validate(spec);
  INFO(status.message());
  CHECK(status.code() == StatusCode::invalid_argument);
  CHECK(status.message().find(word) != std::string_view::npos);
  CHECK(status.place().layer == spec.layer);
}

}  // namespace

TEST_CASE("validate() names the field that is wrong", "[checkpoint]") {
  CHECK(validate(layer_spec()).ok());
  for (int64_t value : {int64_t{0}, int64_t{-1}, int64_t{1} << 40, INT64_MAX}) {
    LayerSpec spec = layer_spec();
    spec.expert.hidden = value;
    refused(spec, "expert.hidden");
    spec = layer_spec();
    spec.shared->expert.intermediate = value;
    refused(spec, "shared.expert.intermediate");
  }
  LayerSpec spec = layer_spec();
  spec.router.top_k = 5;
  refused(spec, "top_k");
  spec = layer_spec();
  spec.shared->expert.hidden = 7;
  refused(spec, "shared.expert.hidden");
  spec = layer_spec();
  spec.expert.activation = Activation::swiglu_oai;
  spec.expert.limit = 0;
  refused(spec, "limit");
  spec.expert.limit = 7;
  spec.expert.gated = false;
  refused(spec, "gate");
  spec = layer_spec();
  spec.layer = -1;
  refused(spec, "layer is -1");
}

TEST_CASE("MemoryWeights gives back what was set", "[checkpoint]") {
  MemoryWeights weights({layer_spec()});
  std::vector<float> values(100);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);

  const WeightId gate{3, WeightKind::gate, 1};
  CHECK(weights.describe(gate).status().code() == StatusCode::not_found);
  // A view with room between its rows.
  const TensorView view(values.data(), DType::f32, {5, 6}, {8, 1}, {});
  REQUIRE(weights.set(gate, view).ok());
  auto shape = weights.describe(gate);
  REQUIRE(shape.ok());
  CHECK(shape->strides == Dims({6, 1}));
  std::vector<float> out(60, NAN);
  REQUIRE(weights.read(gate, {out.data(), DType::f32, {5, 6}, {12, 2}, {}}).ok());
  for (int64_t r = 0; r < 5; ++r)
    for (int64_t c = 0; c < 6; ++c) {
      CHECK(out[static_cast<size_t>(r * 12 + c * 2)] == static_cast<float>(r * 8 + c));
      if (r * 12 + c * 2 + 1 < 60) CHECK(std::isnan(out[static_cast<size_t>(r * 12 + c * 2 + 1)]));
    }

  const auto code = [&](const WeightId& id, const TensorView& v) {
    return weights.set(id, v).code();
  };
  const TensorView dense(values.data(), DType::f32, {5, 6});
  CHECK(code({2, WeightKind::gate, 1}, dense) == StatusCode::not_found);
  CHECK(code({3, WeightKind::gate, 4}, dense) == StatusCode::invalid_argument);
  CHECK(code({3, WeightKind::down, 1}, dense) == StatusCode::invalid_argument);
  CHECK(code({3, WeightKind::gate_scale, 1}, dense) == StatusCode::invalid_argument);
  CHECK(code(gate, TensorView(values.data(), DType::bf16, {5, 6})) == StatusCode::invalid_argument);
  CHECK(code(gate, TensorView(nullptr, DType::f32, {5, 6})) == StatusCode::invalid_argument);
  CHECK(code({3, WeightKind::gate, kSharedExpert}, dense) == StatusCode::ok);
  CHECK(code({3, WeightKind::router_weight}, TensorView(values.data(), DType::bf16, {4, 6})) ==
        StatusCode::ok);
}

TEST_CASE("synthetic values are centred, of unit size, and repeat", "[checkpoint]") {
  constexpr int kCount = 200000;
  double sum = 0, squares = 0;
  std::set<float> distinct;
  for (uint64_t i = 0; i < kCount; ++i) {
    const float value = synthetic_value(test::seed(), i);
    sum += value;
    squares += double{value} * value;
    if (i < 1000) distinct.insert(value);
    REQUIRE(std::abs(value) <= 3.4642f);
  }
  CHECK(std::abs(sum / kCount) < 0.02);
  CHECK(std::abs(squares / kCount - 1) < 0.02);
  CHECK(distinct.size() > 980);
  // The function is a promise to GPUs and to files that exist.
  CHECK(synthetic_bits(0, 0) == 0xe220a8397b1dcdafu);  // splitmix64's first output for seed 0
  CHECK(synthetic_bits(0, 1) == 0x6e789e6aa1b965f4u);
}

TEST_CASE("writing a synthetic model can be cancelled and leaves nothing", "[checkpoint]") {
  test::TemporaryDirectory directory;
  const SyntheticSpec spec{.layers = 3, .shard_bytes = 100000};
  struct State {
    int calls = 0;
    int64_t done = 0, total = 0;
  } state;
  const Progress progress = [](void* argument, int64_t done, int64_t total) {
    auto& s = *static_cast<State*>(argument);
    CHECK(done > s.done);
    CHECK(done <= total);
    s.done = done;
    s.total = total;
    return ++s.calls < 60;
  };
  const Status status = write_synthetic(spec, directory.path(), progress, &state);
  CHECK(status.code() == StatusCode::cancelled);
  CHECK(state.calls == 60);
  CHECK(std::filesystem::is_empty(directory.path()));

  state = {};
  const Progress all = [](void* argument, int64_t done, int64_t total) {
    auto& s = *static_cast<State*>(argument);
    s.done = done;
    s.total = total;
    return true;
  };
  REQUIRE(write_synthetic(spec, directory.path(), all, &state).ok());
  CHECK(state.done == state.total);
  CHECK(write_synthetic(spec, directory.path()).code() == StatusCode::already_exists);
}

TEST_CASE("a synthetic model that cannot be is refused", "[checkpoint]") {
  const auto code = [](const SyntheticSpec& spec) { return make_synthetic(spec).status().code(); };
  CHECK(code({.family = "nobody"}) == StatusCode::not_found);
  CHECK(code({.family = "arctic"}) == StatusCode::unimplemented);
  CHECK(code({.layers = 0}) == StatusCode::invalid_argument);
  CHECK(code({.experts = -1}) == StatusCode::invalid_argument);
  CHECK(code({.experts = 4, .top_k = 5}) == StatusCode::invalid_argument);
  CHECK(code({.hidden = 0}) == StatusCode::invalid_argument);
  CHECK(code({.dtype = DType::i8}) == StatusCode::invalid_argument);
  CHECK(code({.shared_intermediate = 8}) == StatusCode::invalid_argument);
  CHECK(code({.family = "deepseek_v3", .shared_intermediate = 49}) == StatusCode::invalid_argument);
  CHECK(synthetic_like("gpt-5").status().code() == StatusCode::not_found);
}

TEST_CASE("a checkpoint of 100,000 tensors opens quickly", "[checkpoint][mission-12]") {
  test::TemporaryDirectory directory;
  const SyntheticSpec spec{.family = "deepseek_v3",
                           .layers = 65,
                           .experts = 512,
                           .hidden = 1,
                           .intermediate = 1,
                           .shard_bytes = 20000};
  REQUIRE(write_synthetic(spec, directory.path()).ok());
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    const std::clock_t start = std::clock();
    auto checkpoint = Checkpoint::open(directory.path());
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    REQUIRE(checkpoint.ok());
    CHECK(checkpoint->tensors().size() > 100000);
    best = std::min(best, seconds);
  }
  std::printf("open: 100,000 tensors in %.3f s of CPU time (best of 5)\n", best);
  CHECK(best < 2);  // 0.3 s is the goal; other work may share the machine
}
