#include "names.h"

#include <algorithm>
#include <charconv>
#include <numeric>

#include "commands.h"

namespace moe::cli {
namespace {

// Levenshtein distance.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string did_you_mean(std::string_view word, const std::vector<std::string>& known) {
  size_t best = word.size() / 3 + 2;  // farther is no misspelling
  std::string nearest;
  for (const std::string& name : known) {
    if (const size_t d = distance(word, name); d < best) best = d, nearest = name;
  }
  return nearest.empty() ? "" : " Did you mean '" + nearest + "'?";
}

Device parse_device(const std::string& text) {
  if (text == "cpu") return Device::cpu();
  if (text == "cuda") return Device::cuda(0);
  int32_t index = -1;
  if (text.rfind("cuda:", 0) == 0) {
    const char* end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data() + 5, end, index);
    if (parsed.ec == std::errc() && parsed.ptr == end && index >= 0) return Device::cuda(index);
  }
  wrong_usage("--device: '" + text + "' is neither cpu nor cuda:N");
}

const std::vector<std::string>& row_precisions() {
  static const std::vector<std::string> names = {"automatic", "exact", "fast"};
  return names;
}

RowPrecision parse_rows(const std::string& text) {
  const auto& names = row_precisions();
  const auto at = std::find(names.begin(), names.end(), text);
  return static_cast<RowPrecision>(at - names.begin());
}

DType parse_dtype(const std::string& text) {
  std::string name = text;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return toupper(c); });
  const Result<DType> type = dtype_from_safetensors(name);
  if (!type.ok()) wrong_usage("--dtype: '" + text + "' is no element type; try bf16, f16 or f32");
  return *type;
}

}  // namespace moe::cli
