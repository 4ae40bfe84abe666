#include "moe/balance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace moe {
namespace {
// Thresholds of the field: CV 0.5 and 1, max/min 3.
Balance classify(const LoadStatistics& s) {
  if (s.cv > 1.0) return Balance::severe;
  if (s.cv >= 0.5 || s.max_over_min > 3.0) return Balance::moderate;
  return Balance::well;
}

double mean_of(std::span<const double> load) {
  return std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(load.size());
}
}  // namespace

const char* to_string(Balance balance) {
  switch (balance) {
    case Balance::too_few: return "too few tokens to judge";
    case Balance::well: return "well balanced";
    case Balance::moderate: return "moderate imbalance";
    case Balance::severe: return "severe imbalance";
  }
  return "";
}

LoadStatistics load_statistics(std::span<const double> load, double minimum) {
  LoadStatistics s;
  if (load.empty()) return s;
  const auto n = static_cast<double>(load.size());
  s.mean = mean_of(load);
  s.total = s.mean * n;
  s.max = *std::max_element(load.begin(), load.end());
  s.min = *std::min_element(load.begin(), load.end());
  if (!(s.mean > 0)) return s;
  double squares = 0;
  for (double x : load) squares += (x - s.mean) * (x - s.mean);
  s.cv = std::sqrt(squares / n) / s.mean;
  s.max_over_mean = s.max / s.mean;
  s.max_over_min = s.min > 0 ? s.max / s.min : std::numeric_limits<double>::infinity();
  if (s.mean >= minimum) s.balance = classify(s);
  return s;
}

double balancedness_vllm(std::span<const double> load, int32_t ranks) {
  double means = 0, maxima = 0;
  for (size_t i = 0; ranks > 0 && i + ranks <= load.size(); i += ranks) {
    const auto layer = load.subspan(i, ranks);
    means += mean_of(layer);
    maxima += *std::max_element(layer.begin(), layer.end());
  }
  return maxima > 0 ? means / maxima : 0;
}

double balancedness_sglang(std::span<const double> load, int32_t ranks) {
  double sum = 0;
  int64_t layers = 0;
  for (size_t i = 0; ranks > 0 && i + ranks <= load.size(); i += ranks, ++layers) {
    const auto layer = load.subspan(i, ranks);
    sum += (mean_of(layer) + 1e-5) / (*std::max_element(layer.begin(), layer.end()) + 1e-5);
  }
  return layers > 0 ? sum / static_cast<double>(layers) : 0;
}

double wait_share(double wait_seconds, double total_seconds) {
  return total_seconds > 0 ? wait_seconds / total_seconds : 0;
}

}  // namespace moe
