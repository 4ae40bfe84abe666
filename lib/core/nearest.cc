#include "core/nearest.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <utility>
#include <vector>

#include "core/json.h"

namespace moe {

int edit_distance(std::string_view a, std::string_view b, int limit) {
  while (!a.empty() && !b.empty() && a.front() == b.front()) a.remove_prefix(1), b.remove_prefix(1);
  while (!a.empty() && !b.empty() && a.back() == b.back()) a.remove_suffix(1), b.remove_suffix(1);
  const int rows = static_cast<int>(a.size()), columns = static_cast<int>(b.size());
  if (std::abs(rows - columns) > limit) return limit + 1;

  std::vector<int> row(columns + 1);  // distances of a's first i characters to b's first j
  std::iota(row.begin(), row.end(), 0);
  for (int i = 1; i <= rows; ++i) {
    int diagonal = std::exchange(row[0], i);
    int best = row[0];
    for (int j = 1; j <= columns; ++j) {
      const int replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
      best = std::min(best, row[j]);
    }
    if (best > limit) return limit + 1;
  }
  return std::min(row[columns], limit + 1);
}

NearestName::NearestName(std::string_view wanted)
    : wanted_(wanted), limit_(std::clamp(static_cast<int>(wanted.size() / 3), 1, 16)) {}

void NearestName::offer(std::string_view name) {
  const int distance = edit_distance(wanted_, name, limit_);
  if (distance > limit_) return;
  name_ = name;
  limit_ = distance - 1;
}

std::string NearestName::suggestion() const {
  return name_.empty() ? "" : "; did you mean " + json_quoted(name_) + "?";
}

}  // namespace moe
