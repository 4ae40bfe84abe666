#include "moe/metrics.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>

#include <fmt/format.h>

#include "metrics/counters.h"
#include "model/model_impl.h"

namespace moe {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

// A label value: backslash, quote and line feed are escaped.
std::string escaped(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

// A family of series with one value per layer.
template <class Value>
void write_family(std::string& out, const Metrics& metrics, const std::string& model,
                  const char* name, const char* type, const char* help, Value value) {
  fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  for (const LayerMetrics& layer : metrics.layers)
    fmt::format_to(std::back_inserter(out), "{}{{model=\"{}\",layer=\"{}\"}} {}\n", name, model,
                   layer.layer, value(layer));
}

// Largest expert load over the mean; 0 before anything was routed.
double max_over_mean(const LayerMetrics& layer) {
  int64_t most = 0, sum = 0;
  for (int64_t rows : layer.expert_rows) most = std::max(most, rows), sum += rows;
  if (sum == 0) return 0;
  return static_cast<double>(most) * static_cast<double>(layer.expert_rows.size()) /
         static_cast<double>(sum);
}

// Entropy of the expert loads over that of a uniform load, in [0, 1].
double entropy_ratio(const LayerMetrics& layer) {
  double sum = 0, entropy = 0;
  for (int64_t rows : layer.expert_rows) sum += static_cast<double>(rows);
  if (sum == 0 || layer.expert_rows.size() < 2) return 0;
  for (int64_t rows : layer.expert_rows) {
    const double p = static_cast<double>(rows) / sum;
    if (p > 0) entropy -= p * std::log(p);
  }
  return entropy / std::log(static_cast<double>(layer.expert_rows.size()));
}

}  // namespace

void LayerCounters::add(const ForwardReport& report, std::span<const int32_t> ids,
                        int64_t nanoseconds) {
  int64_t chosen = 0;
  for (int32_t id : ids)
    if (id >= 0) ++chosen, expert_rows_[static_cast<size_t>(id)].fetch_add(1, kRelaxed);
  forwards_.fetch_add(1, kRelaxed);
  rows_.fetch_add(report.rows, kRelaxed);
  assignments_.fetch_add(chosen, kRelaxed);
  nonfinite_rows_.fetch_add(report.nonfinite_rows, kRelaxed);
  dropped_.fetch_add(report.dropped, kRelaxed);
  nanoseconds_.fetch_add(nanoseconds, kRelaxed);
}

void LayerCounters::add_time(int64_t nanoseconds) { nanoseconds_.fetch_add(nanoseconds, kRelaxed); }

LayerMetrics LayerCounters::read() const {
  LayerMetrics m;
  m.layer = layer_;
  m.forwards = forwards_.load(kRelaxed);
  m.rows = rows_.load(kRelaxed);
  m.assignments = assignments_.load(kRelaxed);
  m.nonfinite_rows = nonfinite_rows_.load(kRelaxed);
  m.dropped = dropped_.load(kRelaxed);
  m.seconds = static_cast<double>(nanoseconds_.load(kRelaxed)) * 1e-9;
  for (const Counter& rows : expert_rows_) m.expert_rows.push_back(rows.load(kRelaxed));
  return m;
}

Metrics metrics(const Model& model) {
  Metrics m;
  const Model::Impl& impl = *model.impl();
  for (size_t i = 0; i < impl.counters.size(); ++i) {
    m.layers.push_back(impl.counters[i]->read());
    if (impl.device) (void)impl.device->read_counts(i, &m.layers.back());
    m.forwards += m.layers.back().forwards;
  }
  m.errors = impl.errors.load(kRelaxed);
  return m;
}

std::string to_prometheus(const Metrics& m, std::string_view model_label) {
  const std::string model = escaped(model_label);
  std::string out;
  fmt::format_to(std::back_inserter(out),
                 "# HELP moe_forward_errors_total Forwards that returned an error.\n"
                 "# TYPE moe_forward_errors_total counter\n"
                 "moe_forward_errors_total{{model=\"{}\"}} {}\n",
                 model, m.errors);
  write_family(out, m, model, "moe_forwards_total", "counter", "Batches computed.",
               [](auto& l) { return l.forwards; });
  write_family(out, m, model, "moe_tokens_total", "counter", "Rows computed.",
               [](auto& l) { return l.rows; });
  write_family(out, m, model, "moe_forward_seconds_total", "counter", "Time in forward().",
               [](auto& l) { return l.seconds; });
  write_family(out, m, model, "moe_expert_assignments_total", "counter",
               "Pairs of a row and a chosen expert.", [](auto& l) { return l.assignments; });
  write_family(out, m, model, "moe_router_nonfinite_rows_total", "counter",
               "Rows with a non-finite router logit.", [](auto& l) { return l.nonfinite_rows; });
  write_family(out, m, model, "moe_capacity_overflow_tokens_total", "counter",
               "Choices lost to the router's capacity.", [](auto& l) { return l.dropped; });
  write_family(out, m, model, "moe_load_max_over_mean_ratio", "gauge",
               "Rows of the busiest expert over the mean.", max_over_mean);
  write_family(out, m, model, "moe_router_entropy_ratio", "gauge",
               "Entropy of expert loads over that of a uniform load.", entropy_ratio);
  write_family(out, m, model, "moe_dead_experts", "gauge", "Experts that no row has chosen.",
               [](auto& l) { return std::count(l.expert_rows.begin(), l.expert_rows.end(), 0); });
  return out;
}

}  // namespace moe
