// The layout of a stored tensor in one line, outermost axis first, one letter per axis:
//
//   c  candidates of the router      e  experts           v  vocabulary (any extent)
//   h  hidden                        g  gate 0, up 1      k  top_k
//   i  intermediate                  1-9  that many, of which the first counts
//
// Parentheses merge letters into one stored axis: gpt-oss keeps gate and up in alternate columns of
// (experts, hidden, 2 * intermediate), which is "e h (i g)".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "moe/tensor.h"

namespace moe {

struct Extents {
  int64_t candidates = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int64_t experts = 0;
  int64_t top_k = 0;
};

inline constexpr int64_t kAnyExtent = -1;

struct StoredLayout {
  Dims shape;  // as stored; kAnyExtent matches every extent of the outermost axis

  // Elements between neighbours along the axis `letter`; 0 if the tensor has no such axis.
  int64_t step(char letter) const { return steps[letter - 'a']; }
  int64_t steps['z' - 'a' + 1] = {};
};

// `axes` is one of our own tables' strings, so a wrong one is a bug (assert).
StoredLayout stored_layout(std::string_view axes, const Extents& extents);

// "[8, 64]" for messages.
std::string shape_text(const Dims& shape);

}  // namespace moe
