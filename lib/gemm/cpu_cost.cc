// Predictions from rates. Pure arithmetic.
#include "moe/cpu_cost.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moe {
namespace {

double weights_of(const ExpertSpec& spec) {
  return (spec.gated ? 3.0 : 2.0) * static_cast<double>(spec.hidden) *
         static_cast<double>(spec.intermediate);
}

// Between the points by straight lines, and beyond the last one in proportion to the rows.
double compute_ns(const std::vector<CpuRates::Point>& points, int64_t rows) {
  const auto after =
      std::find_if(points.begin(), points.end(), [&](const auto& p) { return p.rows >= rows; });
  const auto n = static_cast<double>(rows);
  if (after == points.end())
    return points.back().ns_per_weight * n / static_cast<double>(points.back().rows);
  if (after->rows == rows || after == points.begin()) return after->ns_per_weight;
  const CpuRates::Point& before = after[-1];
  const double share =
      (n - static_cast<double>(before.rows)) / static_cast<double>(after->rows - before.rows);
  return std::lerp(before.ns_per_weight, after->ns_per_weight, share);
}

// What `each` says of the rates for `threads` threads: speeds between those that were measured lie
// on a straight line.
template <class Each>
double at_threads(const CpuCost& cost, int threads, Each each) {
  const auto& rates = cost.rates;
  const auto after = std::find_if(rates.begin(), rates.end(),
                                  [&](const CpuRates& r) { return r.threads >= threads; });
  if (after == rates.end()) return each(rates.back());
  if (after->threads == threads || after == rates.begin()) return each(*after);
  const CpuRates& before = after[-1];
  const double share = static_cast<double>(threads - before.threads) /
                       static_cast<double>(after->threads - before.threads);
  return 1 / std::lerp(1 / each(before), 1 / each(*after), share);
}

}  // namespace

double expert_ns(const CpuCost& cost, const ExpertSpec& spec, int64_t rows, int threads) {
  if (rows <= 0) return 0;
  const auto fetch = [](const CpuRates& rates) { return rates.read_ns_per_weight; };
  const auto compute = [&](const CpuRates& rates) { return compute_ns(rates.compute, rows); };
  return weights_of(spec) *
         std::max(at_threads(cost, threads, fetch), at_threads(cost, threads, compute));
}

double batch_ns(const CpuCost& cost, const ExpertSpec& spec,
                std::span<const int64_t> rows_of_expert, int threads) {
  double sum = 0;
  for (const int64_t rows : rows_of_expert) sum += expert_ns(cost, spec, rows, threads);
  return sum > 0 ? sum + at_threads(cost, threads, [](const CpuRates& r) { return r.job_ns; }) : 0;
}

// A copy takes as long for one expert as for another, so of k experts on the CPU the k cheapest are
// the best, and both ends are monotonic in k.
CpuShare choose_for_cpu(std::span<const double> cpu_ns, double copy_ns) {
  std::vector<size_t> order(cpu_ns.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return cpu_ns[a] < cpu_ns[b]; });
  const auto copies = [&](size_t k) { return static_cast<double>(cpu_ns.size() - k) * copy_ns; };
  CpuShare share{std::vector<bool>(cpu_ns.size()), copies(0)};
  double cpu = 0;
  size_t best = 0;
  for (size_t k = 1; k <= order.size(); ++k) {
    cpu += cpu_ns[order[k - 1]];
    const double end = std::max(cpu, copies(k));
    if (end < share.ns) share.ns = end, best = k;
  }
  for (size_t k = 0; k < best; ++k) share.on_cpu[order[k]] = true;
  return share;
}

}  // namespace moe
