// Copies a canonical tensor out of a stored one, whatever the stored orientation.
#pragma once

#include <cstdint>
#include <functional>

#include "checkpoint/layer_tensors.h"
#include "moe/tensor.h"

namespace moe {

// Fills `out` with `bytes` bytes of the stored tensor, from `offset` on.
using ReadStored = std::function<Status(int64_t offset, int64_t bytes, void* out)>;

// Bytes of the stored tensor from the slice's first element to its last; all of packed words.
struct ByteSpan {
  int64_t offset = 0;
  int64_t bytes = 0;
};
ByteSpan span_of(const TensorSlice& slice, DType dtype, const Dims& shape);

// Element (row, column) of `out` becomes that of `slice`; `out` has the slice's shape, any strides.
// Packed words are another matter: read_packed.h. Touches only bytes between the slice's first and
// last element, in pieces of about 1 MiB.
Status read_slice(const TensorSlice& slice, const ReadStored& read, const MutableTensorView& out);

}  // namespace moe
