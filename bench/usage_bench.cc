// What it costs to count a model's choices: UsageWindow::record() alone, and forward() with and
// without ForwardOptions::usage. CPU time of one thread, medians. All experts share their weights:
// the matrices are as large as real ones, and nothing here looks at values.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <vector>

#include "moe/moe.h"
#include "placement/random.h"

namespace {
using namespace moe;

double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().data());
  std::exit(1);
}
template <class T>
T must(Result<T> result) {
  must(result.status());
  return *std::move(result);
}

// Microseconds of one call; `repeats` medians of `calls` calls each.
template <class Body>
double median_us(int calls, Body body) {
  std::vector<double> us;
  for (int i = 0; i < 9; ++i) {
    const double start = cpu_seconds();
    for (int call = 0; call < calls; ++call) body();
    us.push_back(1e6 * (cpu_seconds() - start) / calls);
  }
  std::nth_element(us.begin(), us.begin() + 4, us.end());
  return us[4];
}

LayerSpec layer_of(int32_t experts, int32_t top_k, int64_t hidden, int64_t intermediate) {
  LayerSpec spec;
  spec.layer = 0;
  spec.router.num_experts = experts;
  spec.router.top_k = top_k;
  spec.expert = {.hidden = hidden, .intermediate = intermediate};
  spec.expert.format = {FormatKind::bf16, 0};
  return spec;
}

void record_alone(int32_t experts, int32_t top_k, int64_t tokens) {
  const std::vector<LayerExperts> layers = {{0, experts}};
  UsageWindow window = must(UsageWindow::create(layers, top_k));
  placement::Random random(1);
  std::vector<std::vector<int32_t>> batches(1000);
  for (auto& ids : batches)
    while (static_cast<int64_t>(ids.size()) < tokens * top_k) {
      const auto row = ids.end() - static_cast<int64_t>(ids.size()) % top_k;
      const double u = random.uniform();
      const auto e = static_cast<int32_t>(u * u * experts);
      if (std::find(row, ids.end(), e) == ids.end()) ids.push_back(e);
    }
  size_t next = 0;
  std::printf("record, %4d experts, top %d, %4lld tokens: %8.2f us\n", experts, top_k,
              static_cast<long long>(tokens), median_us(20000 / static_cast<int>(tokens), [&] {
                must(window.record(0, batches[next++ % batches.size()]));
              }));
}

void forward_beside(const LayerSpec& spec, int64_t tokens) {
  placement::Random random(2);
  const ExpertSpec& e = spec.expert;
  std::vector<uint16_t> weights(e.hidden * e.intermediate, 0x3c00);
  std::vector<float> router(spec.router.num_experts * e.hidden), hidden(64 * tokens * e.hidden),
      out(tokens * e.hidden);
  for (float& w : router) w = static_cast<float>(random.uniform() - 0.5);
  for (float& h : hidden) h = static_cast<float>(random.uniform() - 0.5);
  MemoryWeights source({spec});
  must(source.set({0, WeightKind::router_weight},
                  {router.data(), DType::f32, {spec.router.num_experts, e.hidden}}));
  for (int32_t i = 0; i < spec.router.num_experts; ++i) {
    must(source.set({0, WeightKind::gate, i},
                    {weights.data(), DType::bf16, {e.intermediate, e.hidden}}));
    must(source.set({0, WeightKind::up, i},
                    {weights.data(), DType::bf16, {e.intermediate, e.hidden}}));
    must(source.set({0, WeightKind::down, i},
                    {weights.data(), DType::bf16, {e.hidden, e.intermediate}}));
  }
  const auto executor = must(make_executor(1));
  Model model = must(Model::create(source, {.host = {.executor = executor.get()}}));
  const std::vector<LayerExperts> layers = {{0, spec.router.num_experts}};
  UsageWindow window = must(UsageWindow::create(layers, spec.router.top_k));
  int64_t next = 0;
  const auto forward = [&](UsageWindow* usage) {
    const float* rows = hidden.data() + next++ % 64 * tokens * e.hidden;
    must(model.forward(0, {rows, DType::f32, {tokens, e.hidden}},
                       {out.data(), DType::f32, {tokens, e.hidden}}, {.usage = usage}));
  };
  forward(&window);
  const double off = median_us(64, [&] { forward(nullptr); });
  const double on = median_us(64, [&] { forward(&window); });
  std::printf("forward, %3d experts, top %d, %lld x %lld, %lld tokens: %.2f us, counted %.2f us\n",
              spec.router.num_experts, spec.router.top_k, static_cast<long long>(e.hidden),
              static_cast<long long>(e.intermediate), static_cast<long long>(tokens), off, on);
}

}  // namespace

int main() {
  record_alone(64, 8, 1);
  record_alone(256, 8, 1);
  record_alone(4096, 8, 1);
  record_alone(256, 8, 64);
  record_alone(256, 8, 1000);
  forward_beside(layer_of(64, 8, 2048, 1024), 1);
  forward_beside(layer_of(64, 8, 256, 64), 1);
}
