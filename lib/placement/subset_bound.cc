// A set of k experts with l_r of them on rank r takes max(l) >= sum(l^2) / k = 1 + 2 p / k, p the
// pairs that share a rank (exact for pairs of experts). So with W_ij = sum of count / k over the
// sets that hold i and j, and Z_ij = 1 where i and j share a rank,
//     cost >= total + W . Z.
// Z has row sums s = experts / ranks, hence the eigenvalue s for the vector of ones and ranks - 1
// times on its complement, and Z_ii = 1: for every diagonal D of trace 0
//     W . Z = (W + D) . Z >= s / experts 1'W1 + s (sum of the ranks - 1 least eigenvalues of W + D
//                                                  on the complement).
#include "placement/subset_bound.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moe::placement {
namespace {

// Symmetric, (n, n).
struct Matrix {
  int32_t n;
  std::vector<double> a;
  double& operator()(int32_t i, int32_t j) { return a[static_cast<size_t>(i) * n + j]; }
};

// Jacobi's rotations: leaves the eigenvalues on the diagonal, the vectors in the columns returned.
Matrix diagonalise(Matrix& m) {
  Matrix v{m.n, std::vector<double>(m.a.size(), 0.0)};
  for (int32_t i = 0; i < m.n; ++i) v(i, i) = 1;
  const double scale = std::inner_product(m.a.begin(), m.a.end(), m.a.begin(), 0.0);
  for (int sweep = 0; sweep < 50; ++sweep) {
    double off = 0;
    for (int32_t p = 0; p < m.n; ++p)
      for (int32_t q = p + 1; q < m.n; ++q) off += m(p, q) * m(p, q);
    if (off <= 1e-24 * scale) break;
    for (int32_t p = 0; p < m.n; ++p)
      for (int32_t q = p + 1; q < m.n; ++q) {
        if (m(p, q) == 0) continue;
        const double theta = (m(q, q) - m(p, p)) / (2 * m(p, q));
        const double t =
            (theta >= 0 ? 1.0 : -1.0) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (int32_t i = 0; i < m.n; ++i) {
          const double x = m(i, p), y = m(i, q), z = v(i, p), w = v(i, q);
          m(i, p) = c * x - s * y, m(i, q) = s * x + c * y;
          v(i, p) = c * z - s * w, v(i, q) = s * z + c * w;
        }
        for (int32_t i = 0; i < m.n; ++i) {
          const double x = m(p, i), y = m(q, i);
          m(p, i) = c * x - s * y, m(q, i) = s * x + c * y;
        }
      }
  }
  return v;
}

// Rows and columns lose their means: what is left lives on the complement of the ones. The ones
// themselves get an eigenvalue above all others.
Matrix on_complement(Matrix m) {
  std::vector<double> mean(m.n, 0.0);
  double all = 0, size = 0;
  for (int32_t i = 0; i < m.n; ++i) {
    for (int32_t j = 0; j < m.n; ++j) mean[i] += m(i, j) / m.n, size += std::abs(m(i, j));
    all += mean[i] / m.n;
  }
  for (int32_t i = 0; i < m.n; ++i)
    for (int32_t j = 0; j < m.n; ++j) m(i, j) += all - mean[i] - mean[j] + size / m.n;
  return m;
}

Matrix shared_counts(const ExpertSets& sets, int32_t experts) {
  Matrix w{experts, std::vector<double>(static_cast<size_t>(experts) * experts, 0.0)};
  for (int64_t s = 0; s < sets.size(); ++s)
    for (int32_t i : sets[s])
      for (int32_t j : sets[s])
        if (i != j) w(i, j) += sets.counts[s] / static_cast<double>(sets[s].size());
  return w;
}

}  // namespace

double partition_bound(const ExpertSets& sets, int32_t experts, int32_t ranks) {
  constexpr int kSteps = 40;
  const Matrix w = shared_counts(sets, experts);
  const double share = 1.0 / ranks, size = static_cast<double>(experts) / ranks;
  const double base = share * std::accumulate(w.a.begin(), w.a.end(), 0.0);
  const double mean_weight = base / experts;
  double best = 0;
  std::vector<double> diagonal(experts, 0.0);
  for (int step = 0; step < kSteps; ++step) {
    Matrix m = w;
    for (int32_t i = 0; i < experts; ++i) m(i, i) = diagonal[i];
    m = on_complement(std::move(m));
    Matrix vectors = diagonalise(m);
    std::vector<int32_t> order(experts);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return m(a, a) < m(b, b); });
    double least = 0;
    for (int32_t k = 0; k + 1 < ranks; ++k) least += m(order[k], order[k]);
    best = std::max(best, base + size * least);
    // Uphill: the eigenvectors' squares, less their mean so that the trace stays 0.
    const double length = 4 * mean_weight / (1 + 0.25 * step);
    for (int32_t i = 0; i < experts; ++i) {
      double square = 0;
      for (int32_t k = 0; k + 1 < ranks; ++k) square += std::pow(vectors(i, order[k]), 2);
      diagonal[i] += length * (square * experts / (ranks - 1) - 1);
    }
  }
  return sets.total() + best * (1 - 1e-9);
}

}  // namespace moe::placement
