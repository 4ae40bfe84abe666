// Rates of the CPU's backends, by running them.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/buffer.h"
#include "core/error.h"
#include "core/services.h"
#include "gemm/problem.h"
#include "moe/cpu_cost.h"
#include "quant/half.h"

namespace moe {
namespace {

// bf16 weights that are nothing special: small, of both signs, no two rows alike.
class SomeWeights final : public WeightSource {
 public:
  explicit SomeWeights(ExpertSpec spec) : layers_(1) {
    layers_[0].router.num_experts = 1;
    layers_[0].expert = spec;
    layers_[0].expert.format = {};
  }
  const std::vector<LayerSpec>& layers() const noexcept override { return layers_; }
  Result<TensorShape> describe(const WeightId& id) const override {
    const ExpertSpec& spec = layers_[0].expert;
    const bool down = id.kind == WeightKind::down;
    return TensorShape{DType::bf16, down ? Dims{spec.hidden, spec.intermediate}
                                         : Dims{spec.intermediate, spec.hidden}};
  }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    uint32_t state = 1 + static_cast<uint32_t>(id.kind);
    for (int64_t i = 0; i < out.shape.elements(); ++i) {
      state = state * 1664525 + 1013904223;
      static_cast<uint16_t*>(out.data)[i] = static_cast<uint16_t>(
          f32_to_bf16(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-36f));
    }
    return {};
  }
  std::string_view name() const noexcept override { return "weights to measure with"; }

 private:
  std::vector<LayerSpec> layers_;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Equal experts in slots side by side, and batches of them.
class Experts {
 public:
  static Result<Experts> make(const ExpertSpec& spec, size_t count, const CpuCostOptions& options) {
    Experts made;
    made.spec_ = spec;
    made.hidden_ = options.hidden;
    MOE_ASSIGN_OR_RETURN(made.gemm_,
                         make_expert_gemm(Device::cpu(), spec, {}, {.rows = options.rows}));
    made.stride_ = static_cast<size_t>(
        round_up(static_cast<int64_t>(made.gemm_->layout(spec).bytes), int64_t{4096}));
    MOE_ASSIGN_OR_RETURN(made.slots_, Buffer::allocate(default_allocator(), made.stride_ * count,
                                                       "experts to measure with", 4096));
    MOE_RETURN_IF_ERROR(made.gemm_->pack(spec, SomeWeights(spec), layer(spec), 0, made.slot(0)));
    for (size_t e = 1; e < count; ++e) std::memcpy(made.slot(e), made.slot(0), made.stride_);
    return made;
  }

  size_t count() const { return slots_.size() / stride_; }
  double weights() const { return 3.0 * static_cast<double>(spec_.hidden * spec_.intermediate); }

  // One batch: `rows` rows for each of `experts` experts from `first` on, around the end.
  Result<double> ns(size_t first, size_t experts, int64_t rows, Executor& executor) {
    const auto n = static_cast<int64_t>(experts), pairs = n * rows;
    hidden_rows_.resize(static_cast<size_t>(rows * spec_.hidden) * sizeof(float));
    for (int64_t i = 0; i < rows * spec_.hidden; ++i)
      store_float(hidden_, hidden_rows_.data(), i, static_cast<float>(i % 251 - 125) / 125.0f);
    out_.resize(static_cast<size_t>(pairs * spec_.hidden));
    std::vector<int64_t> of_pair(static_cast<size_t>(pairs));
    std::vector<ExpertGroup> groups;
    for (int64_t e = 0; e < n; ++e) {
      groups.push_back({slot((first + static_cast<size_t>(e)) % count()), static_cast<int32_t>(e),
                        e * rows, rows});
      for (int64_t r = 0; r < rows; ++r) of_pair[static_cast<size_t>(e * rows + r)] = r * n + e;
    }
    const size_t bytes = gemm_->workspace_bytes(spec_, pairs, n, executor.concurrency());
    MOE_ASSIGN_OR_RETURN(const Buffer workspace,
                         Buffer::allocate(default_allocator(), bytes, "a workspace"));
    ExpertBatch batch;
    batch.hidden = TensorView(hidden_rows_.data(), hidden_, {rows, spec_.hidden});
    batch.top_k = static_cast<int32_t>(n);
    batch.groups = groups;
    batch.pairs = of_pair.data();
    batch.out = out_.data();
    batch.executor = &executor;
    batch.workspace = workspace.span();
    const auto begin = std::chrono::steady_clock::now();
    MOE_RETURN_IF_ERROR(gemm_->run(spec_, batch));
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin)
        .count();
  }

  // Median of `samples` such batches, all from expert `first` on, after one that warms up.
  Result<double> median_ns(size_t experts, int64_t rows, int samples, Executor& executor) {
    std::vector<double> times;
    for (int i = -1; i < samples; ++i) {
      MOE_ASSIGN_OR_RETURN(const double ns, this->ns(0, experts, rows, executor));
      if (i >= 0) times.push_back(ns);
    }
    return median(std::move(times));
  }

 private:
  Experts() = default;
  static int32_t layer(const ExpertSpec& spec) { return SomeWeights(spec).layers()[0].layer; }
  std::byte* slot(size_t e) { return slots_.data() + e * stride_; }

  ExpertSpec spec_;
  DType hidden_ = DType::f32;
  std::unique_ptr<ExpertGemm> gemm_;
  size_t stride_ = 0;
  Buffer slots_;
  std::vector<std::byte> hidden_rows_;
  std::vector<float> out_;
};

constexpr int64_t kTiny = 32;                   // sizes of an expert that costs nothing
constexpr int64_t kWarm = 1024;                 // of one among few, which a cache may hold
constexpr int64_t kWide = 2048, kNarrow = 768;  // of one among many, which none holds
constexpr size_t kTogether = 8;                 // experts of a batch at most: work for many threads

ExpertSpec spec_of(const Format& format, int64_t hidden, int64_t intermediate) {
  return {.hidden = hidden, .intermediate = intermediate, .format = format};
}

class Meter {
 public:
  static Result<Meter> make(const Format& format, const CpuCostOptions& options) {
    MOE_ASSIGN_OR_RETURN(Experts tiny, Experts::make(spec_of(format, kTiny, kTiny), 1, options));
    MOE_ASSIGN_OR_RETURN(Experts warm,
                         Experts::make(spec_of(format, kWarm, kWarm), kTogether, options));
    const ExpertSpec wide = spec_of(format, kWide, kNarrow);
    MOE_ASSIGN_OR_RETURN(const auto gemm, make_expert_gemm(Device::cpu(), wide));
    const size_t count =
        std::max(2 * kTogether, options.memory / std::max<size_t>(1, gemm->layout(wide).bytes));
    MOE_ASSIGN_OR_RETURN(Experts cold, Experts::make(wide, count, options));
    return Meter(std::move(tiny), std::move(warm), std::move(cold), options);
  }

  Result<CpuRates> rates(Executor& executor) {
    CpuRates rates{.threads = executor.concurrency()};
    MOE_ASSIGN_OR_RETURN(rates.job_ns, tiny_.median_ns(1, 1, 10 * options_.samples, executor));
    const auto experts =
        std::clamp(static_cast<size_t>(executor.concurrency()), size_t{2}, kTogether);
    double least = 0;
    for (int64_t rows = 1; rows <= options_.most_rows; rows *= 2) {
      MOE_ASSIGN_OR_RETURN(const double ns,
                           warm_.median_ns(experts, rows, options_.samples, executor));
      const double each =
          std::max(ns - rates.job_ns, 0.1 * ns) / (static_cast<double>(experts) * warm_.weights());
      least = std::max(least, each);
      rates.compute.push_back({rows, least});
    }
    MOE_ASSIGN_OR_RETURN(rates.read_ns_per_weight, read(executor, rates.job_ns));
    return rates;
  }

 private:
  Meter(Experts tiny, Experts warm, Experts cold, const CpuCostOptions& options)
      : tiny_(std::move(tiny)), warm_(std::move(warm)), cold_(std::move(cold)), options_(options) {}

  // One row for each of all cold experts in turn, several rounds of all.
  Result<double> read(Executor& executor, double job_ns) {
    std::vector<double> times;
    const size_t batches = cold_.count() / kTogether;
    for (size_t i = 0; i < batches * std::max(1, options_.samples / 2); ++i) {
      MOE_ASSIGN_OR_RETURN(const double ns, cold_.ns(i * kTogether, kTogether, 1, executor));
      times.push_back(std::max(ns - job_ns, 0.1 * ns));
    }
    return median(std::move(times)) / (kTogether * cold_.weights());
  }

  Experts tiny_, warm_, cold_;
  CpuCostOptions options_;
};

// More threads are never slower: what seemed so was the machine's other work.
void smooth(const CpuRates& fewer, CpuRates* more) {
  more->read_ns_per_weight = std::min(more->read_ns_per_weight, fewer.read_ns_per_weight);
  for (size_t i = 0; i < more->compute.size(); ++i)
    more->compute[i].ns_per_weight =
        std::min(more->compute[i].ns_per_weight, fewer.compute[i].ns_per_weight);
}

}  // namespace

Result<CpuCost> measure_cpu_cost(const Format& format, int threads, const CpuCostOptions& options) {
  return guarded({}, [&]() -> Result<CpuCost> {
    if (threads < 0) return invalid_argument({}, "threads is {}, wanted 0 (all) or more", threads);
    if (options.samples < 1 || options.most_rows < 1)
      return invalid_argument({}, "samples is {} and most_rows {}, wanted 1 or more of each",
                              options.samples, options.most_rows);
    MOE_ASSIGN_OR_RETURN(const std::unique_ptr<Executor> all, make_executor(threads));
    MOE_ASSIGN_OR_RETURN(Meter meter, Meter::make(format, options));
    CpuCost cost{format, {}};
    for (int n = 1;; n = std::min(2 * n, all->concurrency())) {
      MOE_ASSIGN_OR_RETURN(const std::unique_ptr<Executor> some, make_executor(n));
      MOE_ASSIGN_OR_RETURN(CpuRates rates, meter.rates(*some));
      if (!cost.rates.empty()) smooth(cost.rates.back(), &rates);
      cost.rates.push_back(std::move(rates));
      if (n == all->concurrency()) return cost;
    }
  });
}

}  // namespace moe
