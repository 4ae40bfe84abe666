// Every format of quantised matrices, in one list. A format is one file beside this one: how its
// elements decode (on host and device), how they are made from floats, and its row of the list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/host_device.h"
#include "moe/status.h"
#include "moe/weights.h"

namespace moe {

// A matrix (rows, columns) = (outputs, inputs) in canonical form, as a WeightSource delivers it;
// scales widened to f32, which is exact. Borrowed.
struct QuantMatrix {
  Format format;
  int64_t rows = 0;
  int64_t columns = 0;
  const uint8_t* values = nullptr;  // (rows, row_bytes(format, columns))
  const float* scales = nullptr;    // scale_shape()
  const uint8_t* zeros = nullptr;   // scale_shape(), i8 or u8; null: none
  const int32_t* groups = nullptr;  // (columns); null: column / group
};

// The same, owned.
struct QuantBuffer {
  Format format;
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<uint8_t> values;
  std::vector<float> scales;
  std::vector<uint8_t> zeros;
  std::vector<int32_t> groups;

  QuantBuffer() = default;
  // Memory for a matrix of `format`, zeroed.
  QuantBuffer(const Format& format, int64_t rows, int64_t columns);
  QuantMatrix view() const;
};

// One format of the list.
struct QuantFormat {
  FormatKind kind;
  DType element;        // type of the canonical matrix
  int per_byte;         // elements in one byte of it
  bool square;          // groups span as many outputs as inputs; group 0 spans one output
  bool integer;         // may have zero points and act-order
  const char* problem;  // what check_format() wants of `group`
  bool (*group_ok)(int32_t group);

  // `count` elements of row `row` from column `begin` on, exactly as the format defines them
  // (scale times element, rounded to f32 once).
  void (*decode)(const QuantMatrix& matrix, int64_t row, int64_t begin, int64_t count, float* out);

  // The nearest that the format can say of row-major `values`. `out` has its format and sizes; its
  // scales are rounded to format.scale.
  void (*encode)(const float* values, QuantBuffer* out);

  // Whether a byte of values holds finite elements alone; null: every byte does.
  bool (*finite)(uint8_t byte) = nullptr;
};

// The row of a quantised format; null for f32, f16, bf16 and formats that nobody has built.
const QuantFormat* find_format(FormatKind kind);

inline bool is_quantised(FormatKind kind) {
  return kind != FormatKind::f32 && kind != FormatKind::f16 && kind != FormatKind::bf16;
}

// ok, or what of `format` no code here understands.
Status check_format(const Format& format);

// "int4-g128-f16", "int8-g0-f32-zero-order", "bf16": equal names, equal bits in memory.
std::string format_name(const Format& format);

// Shapes and types of the canonical tensors of a (rows, columns) matrix. Needs a row of the list.
int64_t groups_of(const Format& format, int64_t columns);  // scales along a row
int64_t row_bytes(const Format& format, int64_t columns);  // of one row of values
Dims value_shape(const Format& format, int64_t rows, int64_t columns);
Dims scale_shape(const Format& format, int64_t rows, int64_t columns);
DType value_type(const Format& format);
DType zero_type(const Format& format);

// ok, or data_loss naming the first scale that is zero, subnormal in its type or not finite, the
// first element that is NaN, or the first group index out of range. A matrix that passes decodes to
// finite numbers.
Status check_matrix(const QuantMatrix& matrix);

// The scale nearest to `scale` that `type` can hold: what encoders store.
float round_scale(DType type, float scale);

}  // namespace moe
