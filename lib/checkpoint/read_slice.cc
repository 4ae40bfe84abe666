#include "checkpoint/read_slice.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace moe {
namespace {

// One axis of the copy: steps in elements.
struct Axis {
  int64_t extent = 1;
  int64_t from_step = 0;
  int64_t to_step = 0;
};

struct Copy {
  Axis outer, inner;  // outer has the larger stored step
  int64_t from = 0;   // first stored element
  int64_t element = 0;
  char* to = nullptr;
};

Copy plan(const TensorSlice& slice, const MutableTensorView& out) {
  Axis row{out.shape[0], slice.row_step, out.strides[0]};
  Axis column;
  if (out.shape.rank > 1) column = {out.shape[1], slice.column_step, out.strides[1]};
  if (row.extent > 1 && row.from_step < column.from_step) std::swap(row, column);
  if (out.shape.rank == 1) std::swap(row, column);
  return {row, column, slice.base, bits_of(out.dtype) / 8, static_cast<char*>(out.data)};
}

// Elements from the first of `axis` to its last, both included.
int64_t span(const Axis& axis) { return (axis.extent - 1) * axis.from_step + 1; }

bool dense(const Axis& axis) {
  return axis.extent == 1 || (axis.from_step == 1 && axis.to_step == 1);
}

bool dense(const Copy& copy) {
  const int64_t n = copy.inner.extent;
  return dense(copy.inner) &&
         (copy.outer.extent == 1 || (copy.outer.from_step == n && copy.outer.to_step == n));
}

// Elements are moved as opaque values of their size.
template <class T>
void scatter(const Copy& copy, const char* from, int64_t first, int64_t count) {
  const auto* source = reinterpret_cast<const T*>(from);
  auto* target = reinterpret_cast<T*>(copy.to) + first * copy.outer.to_step;
  if (dense(copy.inner)) {
    for (int64_t o = 0; o < count; ++o)
      std::memcpy(target + o * copy.outer.to_step, source + o * copy.outer.from_step,
                  copy.inner.extent * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < copy.inner.extent; ++i)
    for (int64_t o = 0; o < count; ++o)
      std::memcpy(target + o * copy.outer.to_step + i * copy.inner.to_step,
                  source + o * copy.outer.from_step + i * copy.inner.from_step, sizeof(T));
}

void scatter(const Copy& copy, const char* from, int64_t first, int64_t count) {
  switch (copy.element) {
    case 1: return scatter<uint8_t>(copy, from, first, count);
    case 2: return scatter<uint16_t>(copy, from, first, count);
    case 4: return scatter<uint32_t>(copy, from, first, count);
    default: return scatter<uint64_t>(copy, from, first, count);
  }
}

}  // namespace

ByteSpan span_of(const TensorSlice& slice, DType dtype, const Dims& shape) {
  if (shape.elements() == 0) return {};
  if (slice.packed.packing != Packing::none)
    return {0, slice.stored.shape.elements() * int64_t{sizeof(int32_t)}};
  const int64_t size = bits_of(dtype) / 8;
  int64_t last = (shape[0] - 1) * slice.row_step;
  if (shape.rank > 1) last += (shape[1] - 1) * slice.column_step;
  return {slice.base * size, (last + 1) * size};
}

Status read_slice(const TensorSlice& slice, const ReadStored& read, const MutableTensorView& out) {
  if (out.shape.elements() == 0) return {};
  const Copy copy = plan(slice, out);
  const int64_t size = copy.element;
  if (dense(copy))
    return read(copy.from * size, copy.outer.extent * copy.inner.extent * size, copy.to);

  constexpr int64_t kPiece = int64_t{1} << 20;
  const int64_t line = copy.outer.extent > 1 ? copy.outer.from_step : span(copy.inner);
  const int64_t lines =
      std::clamp<int64_t>(kPiece / std::max<int64_t>(1, line * size), 1, copy.outer.extent);
  std::vector<std::max_align_t> buffer(
      ((lines - 1) * line + span(copy.inner)) * size / sizeof(std::max_align_t) + 1);
  char* piece = reinterpret_cast<char*>(buffer.data());
  for (int64_t first = 0; first < copy.outer.extent; first += lines) {
    const int64_t count = std::min(lines, copy.outer.extent - first);
    MOE_RETURN_IF_ERROR(read((copy.from + first * copy.outer.from_step) * size,
                             ((count - 1) * line + span(copy.inner)) * size, piece));
    scatter(copy, piece, first, count);
  }
  return {};
}

}  // namespace moe
