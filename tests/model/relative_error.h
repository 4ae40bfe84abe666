// How far an answer is from the one that is wanted.
#pragma once

#include <cmath>
#include <vector>

namespace moe::test {

// Relative Frobenius norm of the difference.
inline double relative_error(const std::vector<float>& got, const std::vector<float>& wanted) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - wanted[i], 2);
    norm += std::pow(static_cast<double>(wanted[i]), 2);
  }
  return std::sqrt(difference / norm);
}

}  // namespace moe::test
