// moe run without --input: random rows through every layer, and what a person wants to know of it.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "batch.h"
#include "gemm/reference.h"
#include "json.h"
#include "run.h"
#include "terminal.h"

namespace moe::cli {
namespace {

constexpr int kRepetitions = 5;

struct LayerResult {
  LayerSpec spec;
  int64_t rows = 0;
  ForwardReport report;              // times are medians
  std::vector<int64_t> expert_rows;  // per candidate
  int64_t checked_rows = 0;
  double relative_error = 0;
  double tolerance = 0;
  ExpertStoreStats store;

  bool right() const { return relative_error <= tolerance; }  // false for NaN
};

int64_t median(std::vector<int64_t> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Forwards a few times; `batch` has the last result, the report the median times.
Status time_forward(Model& model, const LayerSpec& spec, Batch& batch, Recorder& recorder) {
  std::vector<int64_t> route, experts, shared, combine;
  for (int i = 0; i <= kRepetitions; ++i) {
    if (Status status = forward(model, spec, batch); !status.ok()) return status;
    if (Status status = recorder.add(spec, i, batch); !status.ok()) return status;
    if (i == 0) continue;  // warm-up
    route.push_back(batch.report.route_ns);
    experts.push_back(batch.report.experts_ns);
    shared.push_back(batch.report.shared_ns);
    combine.push_back(batch.report.combine_ns);
  }
  batch.report.route_ns = median(route);
  batch.report.experts_ns = median(experts);
  batch.report.shared_ns = median(shared);
  batch.report.combine_ns = median(combine);
  return {};
}

// As many rows as the slow reference computes in about a second, at most 8.
int64_t rows_to_check(const LayerSpec& spec, int64_t rows) {
  const ExpertSpec& expert = spec.expert;
  const double per_row = 6.0 * spec.router.top_k * static_cast<double>(expert.hidden) *
                         static_cast<double>(expert.intermediate);
  return std::clamp<int64_t>(static_cast<int64_t>(1e9 / per_row), 1, std::min<int64_t>(rows, 8));
}

// Compares the first rows of `batch` with the reference, in the relative Frobenius norm.
Status check(const Checkpoint& checkpoint, Batch& batch, LayerResult& result) {
  const int64_t rows = rows_to_check(result.spec, batch.rows), width = batch.hidden_size;
  Routing routing = batch.routing();
  routing.tokens = rows;
  std::vector<double> wanted(static_cast<size_t>(rows * width));
  if (Status status = block_forward_reference(checkpoint, result.spec.layer,
                                              {batch.hidden.data(), DType::f32, {rows, width}},
                                              routing, wanted.data());
      !status.ok())
    return status;
  const auto* got = reinterpret_cast<const float*>(batch.out.data());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    difference += (got[i] - wanted[i]) * (got[i] - wanted[i]);
    norm += wanted[i] * wanted[i];
  }
  result.checked_rows = rows;
  result.relative_error = std::sqrt(difference / norm);
  return {};
}

Result<LayerResult> run_layer(const Checkpoint& checkpoint, const LayerRunner& runner,
                              int32_t layer, const RunOptions& options, Recorder& recorder) {
  const Result<LayerSpec> spec = runner.spec(layer);
  if (!spec.ok()) return spec.status();
  Result<Model> model = runner.load(layer);
  if (!model.ok()) return model.status();
  Batch batch = random_batch(checkpoint, *spec, options.rows, options.seed);
  if (Status status = time_forward(*model, *spec, batch, recorder); !status.ok()) return status;

  LayerResult result{.spec = *spec, .rows = batch.rows, .report = batch.report};
  result.tolerance = runner.tolerance(*spec);
  result.expert_rows.resize(static_cast<size_t>(spec->router.candidates()));
  for (const int32_t id : batch.ids)
    if (id >= 0) ++result.expert_rows[static_cast<size_t>(id)];
  result.store = model->store().stats();
  if (Status status = check(checkpoint, batch, result); !status.ok()) return status;
  return result;
}

// How many experts got how many rows, in up to eight lines.
void print_histogram(const std::vector<int64_t>& expert_rows) {
  constexpr int64_t kLines = 8, kBar = 40;
  const auto [least, most] = std::minmax_element(expert_rows.begin(), expert_rows.end());
  const int64_t step = (*most - *least) / kLines + 1;
  std::vector<int64_t> lines(static_cast<size_t>((*most - *least) / step + 1));
  for (const int64_t rows : expert_rows) ++lines[static_cast<size_t>((rows - *least) / step)];
  const int64_t longest = *std::max_element(lines.begin(), lines.end());
  for (size_t i = 0; i < lines.size(); ++i) {
    const int64_t first = *least + static_cast<int64_t>(i) * step;
    const std::string range =
        step == 1 ? fmt::format("{}", first) : fmt::format("{}..{}", first, first + step - 1);
    const auto bar = static_cast<size_t>((lines[i] * kBar + longest - 1) / longest);
    fmt::print("    {:>11} rows  {:<{}}  {} experts\n", range, std::string(bar, '#'), kBar,
               lines[i]);
  }
}

void print_paging(const ExpertStoreStats& stats) {
  const PagingStats& paging = stats.paging;
  const int64_t needed = paging.hits + paging.misses;
  if (needed == 0) return;
  fmt::print("  paging    {} slots: {} hits, {} misses, {} read, {:.1f} ms waited\n",
             stats.capacity, paging.hits, paging.misses,
             human_bytes(static_cast<double>(paging.bytes_loaded)),
             static_cast<double>(paging.stall_ns) / 1e6);
}

// A GPU reports none: its stages pass after the call.
bool has_stages(const ForwardReport& r) {
  return r.route_ns + r.experts_ns + r.shared_ns + r.combine_ns > 0;
}

void print_layer(const LayerResult& result) {
  const ForwardReport& r = result.report;
  const auto us = [](int64_t ns) { return static_cast<double>(ns) / 1e3; };
  fmt::print("layer {}: {} rows, top {} of {} experts, hidden {}, intermediate {}\n",
             result.spec.layer, result.rows, result.spec.router.top_k,
             result.spec.router.candidates(), result.spec.hidden(),
             result.spec.expert.intermediate);
  fmt::print("  routing\n");
  print_histogram(result.expert_rows);
  if (has_stages(r))
    fmt::print(
        "  time      route {:.1f} us, experts {:.1f} us, shared {:.1f} us, combine {:.1f} us\n",
        us(r.route_ns), us(r.experts_ns), us(r.shared_ns), us(r.combine_ns));
  print_paging(result.store);
  fmt::print(
      "  check     {} rows against the reference: relative error {:.2g} (limit {:.0e}): {}\n",
      result.checked_rows, result.relative_error, result.tolerance,
      result.right() ? "right" : "WRONG");
}

void print_json(const std::vector<LayerResult>& results, const RunOptions& options) {
  Json json;
  json.value("checkpoint", options.checkpoint)
      .value("tolerance", results.front().tolerance)
      .array("layers");
  for (const LayerResult& result : results) {
    const ForwardReport& r = result.report;
    json.object().value("layer", result.spec.layer).value("rows", result.rows);
    if (has_stages(r)) {
      json.value("route_us", static_cast<double>(r.route_ns) / 1e3);
      json.value("experts_us", static_cast<double>(r.experts_ns) / 1e3);
      json.value("shared_us", static_cast<double>(r.shared_ns) / 1e3);
      json.value("combine_us", static_cast<double>(r.combine_ns) / 1e3);
    }
    json.value("checked_rows", result.checked_rows);
    json.value("relative_error", result.relative_error).value("right", result.right());
    add_paging(json, result.store, options);
    json.array("expert_rows");
    for (const int64_t rows : result.expert_rows) json.element(rows);
    json.end().end();
  }
  json.print();
}

}  // namespace

Status run_report(const Checkpoint& checkpoint, const RunOptions& options) {
  const LayerRunner runner(checkpoint, options);
  std::vector<int32_t> layers = options.layers;
  if (layers.empty())
    for (const LayerSpec& spec : checkpoint.layers()) layers.push_back(spec.layer);
  if (layers.empty())
    return Status(StatusCode::not_found, "the checkpoint has no MoE layer",
                  {.file = checkpoint.directory()});

  std::vector<LayerSpec> specs;
  for (const LayerSpec& spec : checkpoint.layers())
    if (std::find(layers.begin(), layers.end(), spec.layer) != layers.end()) specs.push_back(spec);
  Result<Recorder> recorder = Recorder::create(options, specs);
  if (!recorder.ok()) return recorder.status();

  std::vector<LayerResult> results;
  for (const int32_t layer : layers) {
    Result<LayerResult> result = run_layer(checkpoint, runner, layer, options, *recorder);
    if (!result.ok()) return result.status().at({.layer = layer});
    results.push_back(*std::move(result));
    if (!options.json) print_layer(results.back());
  }
  if (Status status = recorder->finish(); !status.ok()) return status;
  if (options.json) print_json(results, options);
  const auto wrong = std::find_if(results.begin(), results.end(),
                                  [](const LayerResult& result) { return !result.right(); });
  if (wrong == results.end()) return {};
  return Status(StatusCode::internal,
                fmt::format("the result differs from the reference by {:.2g}, more than {:.0e}",
                            wrong->relative_error, wrong->tolerance),
                {.layer = wrong->spec.layer});
}

}  // namespace moe::cli
