// Canonical matrices of an expert, in the format that the reader wants: read as they are where the
// source has that format, otherwise through floats, dequantised or quantised on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "moe/status.h"
#include "moe/weights.h"
#include "quant/formats.h"

namespace moe {

// The format in which `source` holds the experts (or the shared expert, kSharedExpert) of `layer`;
// bf16 if it does not know the layer.
Format source_format(const WeightSource& source, int32_t layer, int32_t expert);

struct MatrixId {
  WeightId id;  // gate, up or down, or one's bias
  int64_t outputs = 0;
  int64_t inputs = 0;  // 0 for a bias
};

// One as its source holds it.
struct StoredMatrix {
  MatrixId of;
  DType dtype = DType::f32;             // of `floats`
  std::unique_ptr<std::byte[]> floats;  // row-major; null if the source is quantised:
  QuantBuffer quantised;                // then this
};

// All of `ids`, of one expert, in one batch and in their order. invalid_argument for a shape other
// than (outputs, inputs), unimplemented for a type that is no float, data_loss for scales and group
// indices that are none, each with tensor and expert in its place.
Result<std::vector<StoredMatrix>> read_stored(const WeightSource& source,
                                              std::span<const MatrixId> ids);

// `matrix` in a quantised `format`: as it is, or by way of floats.
Result<QuantBuffer> in_format(const WeightSource& source, StoredMatrix matrix,
                              const Format& format);

// `matrix` as row-major f32.
std::vector<float> in_f32(const StoredMatrix& matrix);

// One matrix alone, in a quantised `format`. Errors of read_stored().
Result<QuantBuffer> read_quantised(const WeightSource& source, const WeightId& id,
                                   const Format& format, int64_t outputs, int64_t inputs);

// The same as row-major f32: dequantised if the source is quantised.
Result<std::vector<float>> read_dequantised(const WeightSource& source, const WeightId& id,
                                            int64_t outputs, int64_t inputs);

// Row-major `values` in a quantised `format` that check_format() takes. data_loss for a value that
// is not finite.
Result<QuantBuffer> quantise(const std::vector<float>& values, const Format& format,
                             int64_t outputs, int64_t inputs);

// All of a matrix as row-major f32.
std::vector<float> dequantise(const QuantMatrix& matrix);

}  // namespace moe
