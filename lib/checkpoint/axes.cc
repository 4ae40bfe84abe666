#include "checkpoint/axes.h"

#include <cassert>

#include <fmt/format.h>

namespace moe {
namespace {

int64_t extent_of(char letter, const Extents& extents) {
  switch (letter) {
    case 'c': return extents.candidates;
    case 'h': return extents.hidden;
    case 'i': return extents.intermediate;
    case 'e': return extents.experts;
    case 'k': return extents.top_k;
    case 'g': return 2;
    case 'v': return kAnyExtent;
    default: assert(letter >= '1' && letter <= '9'); return letter - '0';
  }
}

}  // namespace

StoredLayout stored_layout(std::string_view axes, const Extents& extents) {
  StoredLayout layout;
  int64_t inner_first[kMaxRank];  // stored extents, innermost first
  int64_t step = 1;
  int64_t merged = 1;
  bool inside = false;
  const auto close_axis = [&] {
    assert(layout.shape.rank < kMaxRank);
    inner_first[layout.shape.rank++] = merged;
    merged = 1;
  };
  for (size_t i = axes.size(); i-- > 0;) {
    const char letter = axes[i];
    if (letter == ' ') continue;
    if (letter == ')') {
      inside = true;
    } else if (letter == '(') {
      inside = false;
      close_axis();
    } else {
      const int64_t extent = extent_of(letter, extents);
      if (letter >= 'a') layout.steps[letter - 'a'] = step;
      step *= extent;
      merged *= extent;
      if (!inside) close_axis();
    }
  }
  for (int axis = 0; axis < layout.shape.rank; ++axis)
    layout.shape[axis] = inner_first[layout.shape.rank - 1 - axis];
  return layout;
}

std::string shape_text(const Dims& shape) {
  if (shape.rank < 0) return "[more than 4 axes]";
  std::string text = "[";
  for (int axis = 0; axis < shape.rank; ++axis)
    text += fmt::format("{}{}", axis ? ", " : "", shape[axis]);
  return text + "]";
}

}  // namespace moe
