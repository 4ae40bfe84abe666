// What residency costs a forward.
//
//   store_bench pin                              pin, look-up and release alone, beside a forward
//   store_bench reload CHECKPOINT THREADS SECONDS ROUNDS
//                                                forwards beside a loop of reloads, and alone
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "moe/model.h"
#include "store/store_impl.h"

namespace {

using namespace moe;

void check(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "store_bench: %.*s\n", static_cast<int>(status.message().size()),
               status.message().data());
  std::_Exit(1);
}
template <class T>
T take(Result<T> result) {
  check(result.status());
  return std::move(*result);
}

double wall_us() {
  return std::chrono::duration<double, std::micro>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}
double thread_us() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e6 * static_cast<double>(now.tv_sec) + 1e-3 * static_cast<double>(now.tv_nsec);
}

// The value below which `share` of them are.
double quantile(std::vector<double>& values, double share) {
  const auto at = static_cast<ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<size_t>(at)];
}

std::vector<float> random_rows(int64_t rows, int64_t hidden) {
  std::mt19937_64 random(1);
  std::vector<float> values(static_cast<size_t>(rows * hidden));
  for (float& value : values) value = std::normal_distribution<float>()(random);
  return values;
}

// ---- pin, look-up and release

// One layer in bf16 whose experts are all one expert: nothing here looks at values.
class SameExpert final : public WeightSource {
 public:
  explicit SameExpert(const LayerSpec& spec) : layers_{spec} {}
  const std::vector<LayerSpec>& layers() const noexcept override { return layers_; }
  Result<TensorShape> describe(const WeightId& id) const override {
    const LayerSpec& spec = layers_[0];
    const ExpertSpec& e = spec.expert;
    switch (id.kind) {
      case WeightKind::router_weight:
        return TensorShape{DType::bf16, {spec.router.num_experts, e.hidden}};
      case WeightKind::gate:
      case WeightKind::up: return TensorShape{DType::bf16, {e.intermediate, e.hidden}};
      case WeightKind::down: return TensorShape{DType::bf16, {e.hidden, e.intermediate}};
      default: return Status(StatusCode::not_found, "no such tensor");
    }
  }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    std::mt19937 random(static_cast<uint32_t>(id.kind));
    auto* to = static_cast<uint16_t*>(out.data);
    for (int64_t r = 0; r < out.shape[0]; ++r)
      for (int64_t c = 0; c < out.shape[1]; ++c)
        to[r * out.strides[0] + c * out.strides[1]] =
            static_cast<uint16_t>(0x3c00 | (random() & 0x80ff));
    return {};
  }
  std::string_view name() const noexcept override { return "same experts"; }

 private:
  std::vector<LayerSpec> layers_;
};

void pin(const char* name, int32_t experts, int32_t top_k, int64_t hidden, int64_t intermediate) {
  LayerSpec spec;
  spec.layer = 0;
  spec.router.num_experts = experts;
  spec.router.top_k = top_k;
  spec.expert = {.hidden = hidden, .intermediate = intermediate};
  spec.expert.format = {FormatKind::bf16, 0};
  const SameExpert source(spec);
  const auto executor = take(make_executor(1));  // all of a forward is this thread's
  ModelOptions options;
  options.host.executor = executor.get();
  Model model = take(Model::create(source, options));
  Context context = take(Context::create(model));
  ExpertStore::Impl& store = *model.store().impl();
  StoreLayer& layer = *store.find(0);
  EpochReader reader;
  store.readers.add(&reader);

  constexpr int kBatches = 64;
  const std::vector<float> rows = random_rows(kBatches, hidden);
  std::vector<float> out(static_cast<size_t>(hidden));
  std::vector<int32_t> chosen(static_cast<size_t>(kBatches * top_k));
  const auto forward = [&](int batch) {
    std::vector<float> weights(static_cast<size_t>(top_k));
    Routing routing{1, top_k, chosen.data() + batch * top_k, weights.data()};
    check(model.forward(context, 0, {rows.data() + batch * hidden, DType::f32, {1, hidden}},
                        {out.data(), DType::f32, {1, hidden}}, {.routing_out = &routing}));
  };
  const std::byte* volatile seen = nullptr;
  const auto look_up = [&](int batch) {
    const EpochPin epoch(reader);
    const ExpertTable& table = ExpertStore::Impl::table(layer);
    if (!table.resident) std::abort();
    for (int32_t k = 0; k < top_k; ++k)
      seen =
          table.experts[static_cast<size_t>(chosen[static_cast<size_t>(batch * top_k + k)])].slot;
  };
  for (int b = 0; b < kBatches; ++b) forward(b);
  std::vector<double> forwards, pins;
  for (int sample = 0; sample < 15; ++sample) {  // side by side
    double start = thread_us();
    for (int b = 0; b < kBatches; ++b) forward(b);
    forwards.push_back((thread_us() - start) / kBatches);
    constexpr int kCalls = 1'000'000;
    start = thread_us();
    for (int i = 0; i < kCalls; ++i) look_up(i % kBatches);
    pins.push_back((thread_us() - start) / kCalls);
  }
  (void)seen;
  store.readers.remove(&reader);
  const double whole = quantile(forwards, 0.5), alone = quantile(pins, 0.5);
  std::printf(
      "%-16s %3d experts, top %d, %lld x %lld: forward %.1f us, pin + look-up + release "
      "%.4f us (worst sample %.4f): %.4f %%\n",
      name, experts, top_k, static_cast<long long>(hidden), static_cast<long long>(intermediate),
      whole, alone, quantile(pins, 1), 100 * alone / whole);
}

// ---- forwards while everything is reloaded

struct Phase {
  std::vector<double> us;  // of each forward
  int64_t reloads = 0;
};

Phase serve(Model& model, const WeightSource& source, int64_t rows, double limit_s,
            const ReloadOptions* reload) {
  Phase phase;
  std::atomic<bool> stop{false};
  std::thread reloading;
  if (reload)
    reloading = std::thread([&] {
      for (; !stop; ++phase.reloads) check(model.store().reload(source, *reload).status());
    });
  Context context = take(Context::create(model));
  const int64_t hidden = model.layers()[0].hidden();
  const std::vector<float> in = random_rows(rows, hidden);
  std::vector<float> out(in.size());
  const double end = wall_us() + 1e6 * limit_s;
  for (double now = wall_us(); now < end;)
    for (const LayerSpec& spec : model.layers()) {
      check(model.forward(context, spec.layer, {in.data(), DType::f32, {rows, hidden}},
                          {out.data(), DType::f32, {rows, hidden}}));
      const double then = std::exchange(now, wall_us());
      phase.us.push_back(now - then);
    }
  stop = true;
  if (reloading.joinable()) reloading.join();
  return phase;
}

void reload(const char* directory, int threads, double limit_s, int rounds) {
  const Checkpoint checkpoint = take(Checkpoint::open(directory));
  const auto executor = take(make_executor(threads));
  ModelOptions options;
  options.host.executor = executor.get();
  Model model = take(Model::create(checkpoint, options));
  const ReloadOptions by_layer{.step = ReloadStep::layer}, at_once{.step = ReloadStep::all};
  struct Kind {
    const char* name;
    const ReloadOptions* options;
    std::vector<double> p50, p99, worst;
    int64_t forwards = 0, reloads = 0;
  };
  for (const int64_t rows : {1, 32}) {
    Kind kinds[] = {{"idle", nullptr, {}, {}, {}, 0, 0},
                    {"by layer", &by_layer, {}, {}, {}, 0, 0},
                    {"at once", &at_once, {}, {}, {}, 0, 0}};
    (void)serve(model, checkpoint, rows, 1, nullptr);
    for (int round = 0; round < rounds; ++round)
      for (Kind& kind : kinds) {
        Phase phase = serve(model, checkpoint, rows, limit_s, kind.options);
        kind.p50.push_back(quantile(phase.us, 0.5));
        kind.p99.push_back(quantile(phase.us, 0.99));
        kind.worst.push_back(quantile(phase.us, 1));
        kind.forwards += static_cast<int64_t>(phase.us.size());
        kind.reloads += phase.reloads;
      }
    const double idle = quantile(kinds[0].p99, 0.5);
    for (Kind& kind : kinds)
      std::printf(
          "%2lld rows, reloading %-8s p50 %7.0f us, p99 %7.0f us (%.2fx idle), longest "
          "%7.0f us; %lld forwards, %lld reloads of everything; medians of %d rounds\n",
          static_cast<long long>(rows), kind.name, quantile(kind.p50, 0.5), quantile(kind.p99, 0.5),
          quantile(kind.p99, 0.5) / idle, quantile(kind.worst, 0.5),
          static_cast<long long>(kind.forwards), static_cast<long long>(kind.reloads), rounds);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view what = argc > 1 ? argv[1] : "";
  if (argc == 2 && what == "pin") {
    pin("OLMoE", 64, 8, 2048, 1024);
    pin("Qwen3-30B-A3B", 128, 8, 2048, 768);
    pin("small", 32, 4, 256, 128);
    return 0;
  }
  if (argc == 6 && what == "reload") {
    reload(argv[2], std::atoi(argv[3]), std::atof(argv[4]), std::atoi(argv[5]));
    return 0;
  }
  std::fprintf(stderr,
               "usage: store_bench pin | store_bench reload CHECKPOINT THREADS SECONDS ROUNDS\n");
  return 2;
}
