// A store that pages and `moe simulate` decide alike: with one thread and no prefetch, they agree
// on every hit, every miss and every expert that left.
#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "model/random_model.h"
#include "moe/model.h"
#include "moe/simulate.h"
#include "store/trace_forwards.h"
#include "store/traces.h"
#include "temporary_directory.h"

using namespace moe;
using moe::test::Random;
using moe::test::RandomModel;
using moe::test::Rows;

namespace {

constexpr int32_t kLayers = 3, kExperts = 10, kTopK = 3;
constexpr int64_t kHidden = 12;

LayerSpec layer_spec(int32_t layer) {
  LayerSpec spec;
  spec.layer = layer;
  spec.router.num_experts = kExperts;
  spec.router.top_k = kTopK;
  spec.expert = {.hidden = kHidden, .intermediate = 8};
  spec.expert.format = {FormatKind::f32, 0};
  return spec;
}

std::vector<LayerSpec> layer_specs() { return {layer_spec(1), layer_spec(2), layer_spec(5)}; }

// Forwards of one to six rows; a few experts are popular, so that policies differ.
RoutingTrace random_trace(Random& random, int forwards) {
  RoutingTrace trace{.top_k = kTopK};
  for (const LayerSpec& spec : layer_specs()) trace.layers.push_back({spec.layer, kExperts});
  int64_t seq = 0;
  for (int forward = 0; forward < forwards; ++forward) {
    if (forward % kLayers == 0 && random.chance(0.1)) ++seq;
    const int32_t layer = trace.layers[static_cast<size_t>(forward % kLayers)].layer;
    const int64_t rows = random.one_of({1, 1, 1, 2, 6});
    for (int64_t row = 0; row < rows; ++row) {
      trace.rows.push_back({seq, forward / kLayers, row, layer});
      std::set<int32_t> chosen;
      while (chosen.size() < kTopK)
        chosen.insert(static_cast<int32_t>(random.chance(0.6) ? random.between(0, 3)
                                                              : random.between(0, kExperts - 1)));
      std::vector<int32_t> order(chosen.begin(), chosen.end());
      std::swap(order[0], order[static_cast<size_t>(random.between(0, kTopK - 1))]);
      if (random.chance(0.1)) order.back() = -1;
      trace.experts.insert(trace.experts.end(), order.begin(), order.end());
      for (int32_t k = 0; k < kTopK; ++k)
        trace.weights.push_back(order[static_cast<size_t>(k)] < 0
                                    ? 0.0f
                                    : static_cast<float>(random.between(1, 1000)) / 1000.0f);
    }
  }
  return trace;
}

// expert_memory for `slots` experts.
size_t memory_for(int64_t slots) {
  const ExpertSpec expert = layer_spec(0).expert;
  auto gemm = make_expert_gemm({}, expert);
  REQUIRE(gemm.ok());
  constexpr int64_t kSpare = 2;
  return static_cast<size_t>(slots + kSpare) * (((*gemm)->layout(expert).bytes + 63) / 64 * 64);
}

// Replays a trace on a live model, and reads from its store's health what happened.
class LiveRun {
 public:
  LiveRun(const WeightSource& source, const RoutingTrace& trace, std::string_view policy,
          int64_t slots)
      : trace_(trace), policy_(make(policy)) {
    options_.expert_memory = memory_for(slots);
    options_.eviction_policy = policy_.get();
    options_.host.memory = &memory_;
    auto model = Model::create(source, options_);
    INFO(model.status().message());
    REQUIRE(model.ok());
    model_ = std::make_unique<Model>(*std::move(model));
    CHECK(model_->store().stats().capacity == slots);
  }

  Status forward(const TraceForwards& forward) {
    if (forward.new_sequence()) model_->store().sequence_ended();
    const Dims shape{forward.rows(), kHidden};
    const std::vector<float> hidden(static_cast<size_t>(shape.elements()), 0.5f);
    std::vector<float> out(hidden.size());
    const auto first = static_cast<std::ptrdiff_t>(forward.first_row() * kTopK);
    const auto count = static_cast<std::ptrdiff_t>(forward.rows() * kTopK);
    std::vector<int32_t> ids(trace_.experts.begin() + first,
                             trace_.experts.begin() + first + count);
    std::vector<float> weights(trace_.weights.begin() + first,
                               trace_.weights.begin() + first + count);
    const Routing routing{forward.rows(), kTopK, ids.data(), weights.data()};
    ForwardOptions options;
    options.routing_in = &routing;
    return model_->forward(forward.row().layer, {hidden.data(), DType::f32, shape},
                           {out.data(), DType::f32, shape}, options);
  }

  std::set<std::pair<int32_t, int32_t>> residents() const {
    std::set<std::pair<int32_t, int32_t>> found;
    for (const LayerExperts& layer : trace_.layers)
      for (int32_t e = 0; e < layer.experts; ++e)
        if (model_->store().health(layer.layer, e)->state == CopyState::ready)
          found.emplace(layer.layer, e);
    return found;
  }

  Model& model() { return *model_; }

 private:
  struct Unpaged final : Allocator {  // no huge page roundings: as many slots as asked for
    void* allocate(size_t bytes, size_t alignment) noexcept override {
      return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    }
    void deallocate(void* memory, size_t, size_t) noexcept override { std::free(memory); }
  };

  // As simulate() makes it.
  std::unique_ptr<EvictionPolicy> make(std::string_view name) {
    if (name == "belady") return *make_belady(trace_);
    auto made =
        make_eviction_policy(name, {.layers = trace_.layers, .popularity = *popularity(trace_)});
    REQUIRE(made.ok());
    return *std::move(made);
  }

  const RoutingTrace& trace_;
  Unpaged memory_;
  std::unique_ptr<EvictionPolicy> policy_;
  ModelOptions options_;
  std::unique_ptr<Model> model_;
};

}  // namespace

TEST_CASE("a live run and the simulator agree on every hit, miss and eviction",
          "[store][mission-86][mission-136]") {
  Random random(test::seed());
  const RandomModel weights(layer_specs(), random);
  const RoutingTrace trace = random_trace(random, 240);
  std::vector<std::string> policies = {"belady"};
  for (const EvictionPolicyRow& row : eviction_policy_rows()) policies.push_back(row.name);
  for (const std::string& policy : policies) {
    for (const int64_t slots : {1, 2, 3, 5, 8, 13, 20, 27}) {
      CAPTURE(policy, slots);
      std::vector<PagingEvent> events;
      const auto simulated = simulate(trace, policy, slots, &events);
      REQUIRE(simulated.ok());
      LiveRun live(weights.source(), trace, policy, slots);

      std::set<std::pair<int32_t, int32_t>> resident;  // (layer, expert), as the simulator has them
      size_t event = 0;
      for (TraceForwards forwards(trace); forwards.next();) {
        const Status status = live.forward(forwards);
        INFO(status.message());
        REQUIRE(status.ok());
        for (size_t i = 0; i < forwards.experts().distinct().size(); ++i, ++event) {
          const PagingEvent& told = events[event];
          resident.erase({told.evicted.layer, told.evicted.expert});
          resident.insert({told.id.layer, told.id.expert});
        }
        CAPTURE(event, forwards.row().layer);
        REQUIRE(live.residents() == resident);
      }
      const PagingStats paging = live.model().store().stats().paging;
      CHECK(paging.hits == simulated->hits);
      CHECK(paging.misses == simulated->misses);
      CHECK(paging.load_errors == 0);
    }
  }
}

TEST_CASE("the simulator tells afterwards what a recorded run did",
          "[store][mission-86][mission-136]") {
  Random random(test::seed());
  const RandomModel weights(layer_specs(), random);
  const test::TemporaryDirectory folder;
  std::vector<LayerExperts> layers;
  for (const LayerSpec& spec : layer_specs()) layers.push_back({spec.layer, kExperts});
  for (const char* policy : {"lru", "lru-per-layer", "lfu", "llru", "hybrimoe", "moe-infinity"}) {
    for (const int64_t slots : {4, 9, 17}) {
      CAPTURE(policy, slots);
      ModelOptions options;
      options.expert_memory = memory_for(slots);
      options.eviction = policy;
      auto model = Model::create(weights.source(), options);
      REQUIRE(model.ok());
      const std::string path = folder.path() + "/trace.csv";
      auto writer = TraceWriter::create(path, layers, kTopK);
      REQUIRE(writer.ok());
      for (int64_t step = 0; step < 60; ++step) {
        const int64_t seq = step / 20;
        if (step % 20 == 0 && step > 0) model->store().sequence_ended();
        for (const LayerExperts& layer : layers) {
          const Rows hidden(random, random.one_of({1, 1, 3}), kHidden, DType::f32);
          const int64_t rows = hidden.shape[0];
          std::vector<int32_t> ids(static_cast<size_t>(rows * kTopK));
          std::vector<float> chosen(ids.size()), out(static_cast<size_t>(rows * kHidden));
          Routing routing{rows, kTopK, ids.data(), chosen.data()};
          ForwardOptions with;
          with.routing_out = &routing;
          REQUIRE(model
                      ->forward(layer.layer, hidden.view(), {out.data(), DType::f32, hidden.shape},
                                with)
                      .ok());
          REQUIRE(writer->append({.seq = seq, .step = step, .layer = layer.layer}, routing).ok());
        }
      }
      REQUIRE(writer->finish().ok());
      const auto trace = read_trace(path);
      REQUIRE(trace.ok());
      const ExpertStoreStats stats = model->store().stats();
      const auto simulated = simulate(*trace, policy, stats.capacity);
      REQUIRE(simulated.ok());
      CHECK(stats.paging.hits == simulated->hits);
      CHECK(stats.paging.misses == simulated->misses);
      std::remove(path.c_str());
    }
  }
}
