// Model::forward against the reference, and everything a host may ask of one call.
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "allocations.h"
#include "gemm/reference.h"
#include "moe/moe.h"
#include "random_model.h"

using namespace moe;
using moe::test::Random;
using moe::test::RandomModel;
using moe::test::Rows;

namespace {

double tolerance(DType out) {
  if (out == DType::f32) return 2e-6;
  return out == DType::f16 ? 1e-3 : 6e-3;
}

double relative_error(const Rows& got, const std::vector<double>& wanted) {
  double difference = 0, norm = 1e-60;
  for (int64_t t = 0, i = 0; t < got.shape[0]; ++t)
    for (int64_t h = 0; h < got.shape[1]; ++h, ++i) {
      difference += std::pow(got.at(t, h) - wanted[i], 2);
      norm += wanted[i] * wanted[i];
    }
  return std::sqrt(difference / norm);
}

// A routing with its arrays.
struct OwnRouting {
  OwnRouting(int64_t tokens, int32_t top_k)
      : ids(static_cast<size_t>(tokens * top_k), -7),
        weights(ids.size(), NAN),
        routing{tokens, top_k, ids.data(), weights.data()} {}
  std::vector<int32_t> ids;
  std::vector<float> weights;
  Routing routing;
};

Model make_model(const WeightSource& source, ModelOptions options = {}) {
  auto model = Model::create(source, options);
  INFO(model.status().message());
  REQUIRE(model.ok());
  return *std::move(model);
}

void must(const Status& status) {
  INFO(status.message());
  REQUIRE(status.ok());
}

LayerSpec plain_layer(int32_t layer = 0, int32_t experts = 8, int32_t top_k = 2) {
  LayerSpec spec;
  spec.layer = layer;
  spec.router.num_experts = experts;
  spec.router.top_k = top_k;
  spec.expert = {.hidden = 24, .intermediate = 20};
  spec.expert.format = {FormatKind::f32, 0};
  return spec;
}

}  // namespace

TEST_CASE("forward equals the reference on random layers", "[model][mission-1][mission-139]") {
  Random random(test::seed());
  for (int round = 0; round < 60; ++round) {
    const DType weights = random.one_of({DType::f32, DType::bf16, DType::f16});
    const auto experts = static_cast<int32_t>(random.one_of({1, 2, 8, 16, 60, 64, 128}));
    const auto top_k = static_cast<int32_t>(random.between(1, std::min(8, experts)));
    const LayerSpec spec = test::random_layer(random, 3, weights, experts, top_k);
    RandomModel source({spec}, random, weights);
    Model model = make_model(source.source());
    const int64_t tokens = random.one_of({0, 1, 2, 3, 7, 17, 128});
    const DType type = random.one_of({DType::f32, DType::f32, DType::bf16, DType::f16});
    Rows hidden(random, tokens, spec.hidden(), type, random.between(0, 3));
    Rows out(random, tokens, spec.hidden(), type, random.between(0, 3));
    out.poison();
    OwnRouting chosen(tokens, top_k);
    CAPTURE(round, experts, top_k, tokens, to_string(type), to_string(weights), spec.expert.hidden,
            spec.expert.intermediate, to_string(spec.expert.activation));
    must(model.forward(3, hidden.view(), out.mutable_view(), {.routing_out = &chosen.routing}));
    std::vector<double> wanted(static_cast<size_t>(tokens * spec.hidden()));
    must(block_forward_reference(source.source(), 3, hidden.view(), chosen.routing, wanted.data()));
    const double few = wanted.size() < 64 ? 16 : 1;  // sums that nearly cancel weigh more
    if (tokens > 0) CHECK(relative_error(out, wanted) < few * tolerance(type));
  }
}

TEST_CASE("a row's bits do not depend on its batch", "[model][mission-133]") {
  Random random(test::seed());
  RandomModel source({plain_layer(0, 16, 4)}, random);
  Model model = make_model(source.source());
  Rows hidden(random, 4097, 24, DType::f32), out(random, 4097, 24, DType::f32);
  out.poison();
  must(model.forward(0, hidden.view(), out.mutable_view(), {.batch_invariant = true}));
  for (int64_t t : {0, 1, 2048, 4096}) {
    Rows one(random, 1, 24, DType::f32);
    const TensorView row(hidden.bytes.data() + t * 96, DType::f32, {1, 24});
    must(model.forward(0, row, one.mutable_view()));
    CHECK(std::memcmp(one.bytes.data(), out.bytes.data() + t * 96, 96) == 0);
  }

  LayerSpec limited = *model.layer(0);
  limited.router.capacity = 5;
  RandomModel other({limited}, random, DType::f32);
  Model drops = make_model(other.source());
  const Status refused =
      drops.forward(0, hidden.view(), out.mutable_view(), {.batch_invariant = true});
  CHECK(refused.code() == StatusCode::failed_precondition);
  CHECK(refused.message().find("capacity of 5") != std::string_view::npos);
}

TEST_CASE("sequential execution gives the same bits", "[model][mission-31]") {
  Random random(test::seed());
  const LayerSpec spec = test::random_layer(random, 0, DType::bf16, 16, 4);
  RandomModel source({spec}, random, DType::bf16);
  Model grouped = make_model(source.source());
  Model sequential = make_model(source.source(), {.execution = Execution::sequential});
  Rows hidden(random, 33, spec.hidden(), DType::f32);
  Rows a = hidden, b = hidden;
  must(grouped.forward(0, hidden.view(), a.mutable_view()));
  must(sequential.forward(0, hidden.view(), b.mutable_view()));
  CHECK(a.bytes == b.bytes);
}

TEST_CASE("replayed routing is honoured exactly", "[model][mission-120][mission-140]") {
  Random random(test::seed());
  RandomModel source({plain_layer()}, random);
  Model model = make_model(source.source());
  Rows hidden(random, 9, 24, DType::f32), out(random, 9, 24, DType::f32);
  OwnRouting in(9, 2), recorded(9, 2);
  for (size_t i = 0; i < in.ids.size(); ++i) {
    in.ids[i] = static_cast<int32_t>(random.between(-1, 7));
    in.weights[i] = random.normal();
  }
  must(model.forward(0, hidden.view(), out.mutable_view(),
                     {.routing_in = &in.routing, .routing_out = &recorded.routing}));
  CHECK(recorded.ids == in.ids);
  CHECK(recorded.weights == in.weights);
  std::vector<double> wanted(9 * 24);
  must(block_forward_reference(source.source(), 0, hidden.view(), in.routing, wanted.data()));
  CHECK(relative_error(out, wanted) < 2e-6);

  Rows again(random, 9, 24, DType::f32);
  must(model.forward(0, hidden.view(), again.mutable_view(), {.routing_in = &recorded.routing}));
  CHECK(std::memcmp(again.bytes.data(), out.bytes.data(), 9 * 96) == 0);

  in.ids[3] = 8;
  const Status bad =
      model.forward(0, hidden.view(), out.mutable_view(), {.routing_in = &in.routing});
  CHECK(bad.code() == StatusCode::invalid_argument);
  CHECK(bad.message().find("ids[3] is 8") != std::string_view::npos);
}

TEST_CASE("top_k and expert mask per call", "[model][mission-24][mission-25]") {
  Random random(test::seed());
  const LayerSpec spec = plain_layer();
  LayerSpec top_1 = spec;
  top_1.router.top_k = 1;
  const uint64_t weights_seed = test::seed() + 1;
  Random first(weights_seed), second(weights_seed);
  RandomModel source({spec}, first), source_1({top_1}, second);
  Model model = make_model(source.source()), model_1 = make_model(source_1.source());
  Rows hidden(random, 12, 24, DType::f32);
  Rows a = hidden, b = hidden;
  must(model.forward(0, hidden.view(), a.mutable_view(), {.top_k = 1}));
  must(model_1.forward(0, hidden.view(), b.mutable_view()));
  CHECK(a.bytes == b.bytes);
  CHECK(model.forward(0, hidden.view(), a.mutable_view(), {.top_k = 9}).code() ==
        StatusCode::invalid_argument);

  std::vector<uint8_t> mask(12 * 8);
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = (i / 8 % 2 == 0) == (i % 8 < 4);
  OwnRouting masked(12, 2);
  must(model.forward(0, hidden.view(), a.mutable_view(),
                     {.expert_mask = mask.data(), .routing_out = &masked.routing}));
  for (size_t p = 0; p < 24; ++p) CHECK((masked.ids[p] < 4) == (p / 2 % 2 == 0));
}

TEST_CASE("out may be hidden, may be added to, and must not overlap otherwise", "[model]") {
  Random random(test::seed());
  const LayerSpec spec = test::random_layer(random, 0, DType::f32, 8, 2);
  RandomModel source({spec}, random);
  Model model = make_model(source.source());
  const int64_t h = spec.hidden();
  Rows hidden(random, 10, h, DType::f32), out(random, 10, h, DType::f32);
  must(model.forward(0, hidden.view(), out.mutable_view()));

  Rows in_place = hidden;
  must(model.forward(0, in_place.view(), in_place.mutable_view()));
  CHECK(std::memcmp(in_place.bytes.data(), out.bytes.data(), static_cast<size_t>(40 * h)) == 0);

  Rows sum(random, 10, h, DType::f32);
  const Rows before = sum;
  must(model.forward(0, hidden.view(), sum.mutable_view(), {.accumulate = true}));
  for (int64_t t = 0; t < 10; ++t)
    for (int64_t i = 0; i < h; ++i)
      CHECK(sum.at(t, i) == Approx(before.at(t, i) + out.at(t, i)).margin(1e-6));

  MutableTensorView shifted = hidden.mutable_view();
  shifted.data = hidden.bytes.data() + 4;
  shifted.shape[0] = 9;
  TensorView nine = hidden.view();
  nine.shape[0] = 9;
  const Status overlap = model.forward(0, nine, shifted);
  CHECK(overlap.code() == StatusCode::invalid_argument);
  CHECK(overlap.message().find("overlaps") != std::string_view::npos);
}

TEST_CASE("rows past valid_rows are neither read nor written", "[model]") {
  Random random(test::seed());
  RandomModel source({plain_layer()}, random);
  Model model = make_model(source.source());
  Rows hidden(random, 6, 24, DType::f32), out(random, 6, 24, DType::f32);
  Rows all = out;
  must(model.forward(0, hidden.view(), all.mutable_view()));
  for (int64_t i = 4 * 24; i < 6 * 24; ++i) store_float(DType::f32, hidden.bytes.data(), i, NAN);
  const Rows before = out;
  const int64_t valid = 4;
  ForwardReport report;
  must(model.forward(0, hidden.view(), out.mutable_view(),
                     {.valid_rows = &valid, .report = &report}));
  CHECK(report.rows == 4);
  CHECK(report.nonfinite_rows == 0);
  CHECK(std::memcmp(out.bytes.data(), all.bytes.data(), 4 * 96) == 0);
  CHECK(std::memcmp(out.bytes.data() + 4 * 96, before.bytes.data() + 4 * 96, 2 * 96) == 0);
}

TEST_CASE("one bad row leaves the others alone", "[model][mission-102]") {
  Random random(test::seed());
  RandomModel source({plain_layer()}, random);
  Model model = make_model(source.source());
  Rows hidden(random, 5, 24, DType::f32), clean(random, 5, 24, DType::f32);
  must(model.forward(0, hidden.view(), clean.mutable_view()));
  store_float(DType::f32, hidden.bytes.data(), 2 * 24 + 7, NAN);
  Rows out(random, 5, 24, DType::f32);
  ForwardReport report;
  must(model.forward(0, hidden.view(), out.mutable_view(), {.report = &report}));
  CHECK(report.nonfinite_rows == 1);
  CHECK(report.short_rows == 1);
  for (int64_t t : {0, 1, 3, 4})
    CHECK(std::memcmp(out.bytes.data() + t * 96, clean.bytes.data() + t * 96, 96) == 0);
}

TEST_CASE("what forwards chose is counted in a window that a host reads",
          "[model][mission-65][mission-72]") {
  Random random(test::seed());
  for (int round = 0; round < 8; ++round) {
    const LayerSpec spec = test::random_layer(random, 3, DType::f32, 16, 4);
    RandomModel source({spec}, random);
    Model model = make_model(source.source());
    const int32_t experts = spec.router.num_experts, top_k = spec.router.top_k;
    auto window = UsageWindow::create(std::vector<LayerExperts>{{3, experts}}, top_k);
    REQUIRE(window.ok());
    std::vector<double> tokens(static_cast<size_t>(experts));
    double chosen = 0;
    for (int64_t rows : {5, 0, 1, 17}) {
      Rows hidden(random, rows, spec.hidden(), DType::f32), out = hidden;
      OwnRouting routing(rows, top_k);
      must(model.forward(3, hidden.view(), out.mutable_view(),
                         {.routing_out = &routing.routing, .usage = &*window}));
      for (int64_t row = 0; row < rows; ++row) {
        bool any = false;
        for (int32_t k = 0; k < top_k; ++k)
          if (const int32_t id = routing.ids[row * top_k + k]; id >= 0 && id < experts)
            ++tokens[id], any = true;
        chosen += any;
      }
    }
    CHECK(window->steps(3) == 3);  // no rows are no step
    const UsageTrace usage = window->snapshot();
    must(validate(usage));
    CHECK(usage.layers[0].tokens == tokens);
    CHECK(usage.layers[0].sets.total() == chosen);
  }
}

TEST_CASE("a window that does not fit the forward is refused, and counts nothing", "[model]") {
  Random random(test::seed());
  RandomModel source({plain_layer(4)}, random);
  Model model = make_model(source.source());
  Rows hidden(random, 3, 24, DType::f32), out(random, 3, 24, DType::f32);
  auto other = UsageWindow::create(std::vector<LayerExperts>{{3, 8}}, 2);
  auto narrow = UsageWindow::create(std::vector<LayerExperts>{{4, 8}}, 1);
  const Status wrong = model.forward(4, hidden.view(), out.mutable_view(), {.usage = &*other});
  CHECK(wrong.code() == StatusCode::invalid_argument);
  CHECK(wrong.message().find("no layer 4") != std::string_view::npos);
  const Status wide = model.forward(4, hidden.view(), out.mutable_view(), {.usage = &*narrow});
  CHECK(wide.message().find("top_k is 2") != std::string_view::npos);
  CHECK(other->steps(3) + narrow->steps(4) == 0);
  must(model.forward(4, hidden.view(), out.mutable_view(), {.top_k = 1, .usage = &*narrow}));
  CHECK(narrow->steps(4) == 1);
}

TEST_CASE("after warm-up a forward allocates nothing", "[model][mission-36]") {
  Random random(test::seed());
  const LayerSpec spec = test::random_layer(random, 0, DType::bf16, 32, 4);
  RandomModel source({spec}, random, DType::bf16);
  Model model = make_model(source.source());
  auto context = Context::create(model, {.max_tokens = 64});
  REQUIRE(context.ok());
  CHECK(*Context::workspace_bytes(model, 64) > *Context::workspace_bytes(model, 1));
  Rows hidden(random, 64, spec.hidden(), DType::f32), out(random, 64, spec.hidden(), DType::f32);
  auto usage = UsageWindow::create(std::vector<LayerExperts>{{0, spec.router.num_experts}},
                                   spec.router.top_k, {.steps = 2, .max_sets = 8});
  REQUIRE(usage.ok());
  for (int64_t rows : {64, 1, 17, 0, 63}) {
    TensorView in = hidden.view();
    MutableTensorView result = out.mutable_view();
    in.shape[0] = result.shape[0] = rows;
    const int64_t before = test::allocations();
    const Status status = model.forward(*context, 0, in, result, {.usage = &*usage});
    const int64_t after = test::allocations();
    CHECK(after == before);
    REQUIRE(status.ok());
  }
  must(model.forward(0, hidden.view(), out.mutable_view()));  // warms the model's own context
  const int64_t before = test::allocations();
  const Status status = model.forward(0, hidden.view(), out.mutable_view());
  const int64_t after = test::allocations();
  CHECK(after == before);
  REQUIRE(status.ok());
}

TEST_CASE("threads, models and a shared store do not notice each other",
          "[model][mission-1][mission-37]") {
  Random random(test::seed());
  const LayerSpec spec = test::random_layer(random, 0, DType::f32, 16, 4);
  RandomModel source({spec}, random);
  auto store = ExpertStore::open(source.source());
  REQUIRE(store.ok());
  Model alone = make_model(source.source());
  auto first = Model::create(*store), second = Model::create(*store);
  REQUIRE(first.ok());
  REQUIRE(second.ok());
  const ExpertStoreStats before = store->stats();
  Rows hidden(random, 40, spec.hidden(), DType::f32), wanted(random, 40, spec.hidden(), DType::f32);
  must(alone.forward(0, hidden.view(), wanted.mutable_view()));
  auto usage = UsageWindow::create(std::vector<LayerExperts>{{0, spec.router.num_experts}},
                                   spec.router.top_k);
  REQUIRE(usage.ok());
  std::vector<std::thread> threads;
  std::atomic<int> different{0};
  for (Model* model : {&*first, &*second, &*first})
    threads.emplace_back([&, model] {
      std::vector<float> out(static_cast<size_t>(40 * spec.hidden()));
      for (int i = 0; i < 20; ++i) {
        const Status status = model->forward(
            0, hidden.view(), {out.data(), DType::f32, {40, spec.hidden()}}, {.usage = &*usage});
        different +=
            !status.ok() || std::memcmp(out.data(), wanted.bytes.data(), out.size() * 4) != 0;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(different == 0);
  CHECK(store->stats().pool_bytes == before.pool_bytes);
  CHECK(usage->steps(0) == 60);  // one window, three threads
  CHECK(metrics(*first).forwards + metrics(*second).forwards == 60);
}

TEST_CASE("wrong arguments are refused by name, and the next call works", "[model][mission-12]") {
  Random random(test::seed());
  RandomModel source({plain_layer(4)}, random);
  Model model = make_model(source.source());
  Rows hidden(random, 3, 24, DType::f32), out(random, 3, 24, DType::f32);
  auto refused = [&](const Status& status, std::string_view needle) {
    INFO(status.message());
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.message().find(needle) != std::string_view::npos);
  };
  refused(model.forward(3, hidden.view(), out.mutable_view()), "layer 3 is not one of");
  TensorView wide = hidden.view();
  wide.shape[1] = 23;
  refused(model.forward(4, wide, out.mutable_view()), "hidden is (3, 23)");
  TensorView null = hidden.view();
  null.data = nullptr;
  refused(model.forward(4, null, out.mutable_view()), "hidden is null");
  MutableTensorView short_out = out.mutable_view();
  short_out.shape[0] = 2;
  refused(model.forward(4, hidden.view(), short_out), "out has 2 rows");
  TensorView integers = hidden.view();
  integers.dtype = DType::i32;
  refused(model.forward(4, integers, out.mutable_view()), "hidden is i32");
  TensorView columns = hidden.view();
  columns.strides = {1, 3};
  refused(model.forward(4, columns, out.mutable_view()), "strides (1, 3)");
  MutableTensorView same_row = out.mutable_view();
  same_row.strides[0] = 0;
  refused(model.forward(4, hidden.view(), same_row), "strides (0, 1)");
  TensorView gpu = hidden.view();
  gpu.device = Device::cuda(1);
  refused(model.forward(4, gpu, out.mutable_view()), "cuda:1");
  const int64_t too_many = 4;
  refused(model.forward(4, hidden.view(), out.mutable_view(), {.valid_rows = &too_many}),
          "*valid_rows is 4");
  Rows logits(random, 3, 7, DType::f32);
  refused(model.forward(4, hidden.view(), out.mutable_view(), {.router_logits = logits.view()}),
          "router_logits is (3, 7)");
  CHECK(metrics(model).errors == 10);
  must(model.forward(4, hidden.view(), out.mutable_view()));
}

TEST_CASE("host logits and router input replace the model's", "[model]") {
  Random random(test::seed());
  RandomModel source({plain_layer()}, random);
  Model model = make_model(source.source());
  Rows hidden(random, 4, 24, DType::f32), other(random, 4, 24, DType::f32), out = hidden;
  OwnRouting from_other(4, 2), of_other(4, 2), from_logits(4, 2);
  must(model.forward(0, hidden.view(), out.mutable_view(),
                     {.routing_out = &from_other.routing, .router_input = other.view()}));
  must(model.forward(0, other.view(), out.mutable_view(), {.routing_out = &of_other.routing}));
  CHECK(from_other.ids == of_other.ids);
  Rows logits(random, 4, 8, DType::bf16);
  must(model.forward(0, hidden.view(), out.mutable_view(),
                     {.routing_out = &from_logits.routing, .router_logits = logits.view()}));
  for (int64_t t = 0; t < 4; ++t)
    for (int64_t e = 0; e < 8; ++e)
      CHECK(logits.at(t, e) <= logits.at(t, from_logits.ids[static_cast<size_t>(t * 2)]));
}

TEST_CASE("describe() names the backend and why others were passed over", "[model][mission-38]") {
  Random random(test::seed());
  RandomModel source({plain_layer(0), plain_layer(1)}, random);
  Model model = make_model(source.source());
  const std::string text = model.describe();
  INFO(text);
  CHECK(text.find("layers 0 to 1") != std::string::npos);
  CHECK(text.find("chosen") != std::string::npos);
  CHECK(text.find("reference") != std::string::npos);
}
