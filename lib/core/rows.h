// Addresses inside views of rows, (rows, columns).
#pragma once

#include <cstddef>
#include <type_traits>

#include "moe/tensor.h"

namespace moe {

// Element (row, column) of `view`. Const where the view is.
template <class View>
auto element(const View& view, int64_t row, int64_t column = 0) {
  using Byte =
      std::conditional_t<std::is_same_v<View, MutableTensorView>, std::byte, const std::byte>;
  const int64_t index = row * view.strides[0] + column * view.strides[1];
  return static_cast<Byte*>(view.data) + index * (bits_of(view.dtype) / 8);
}

// Rows [first, first + count) of `view`.
template <class View>
View rows_of(const View& view, int64_t first, int64_t count) {
  View part = view;
  if (count > 0) part.data = element(view, first);
  part.shape[0] = count;
  return part;
}

}  // namespace moe
