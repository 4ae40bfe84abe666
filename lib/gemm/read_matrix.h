// One canonical matrix of an expert, in the format that the reader wants: read as it is where the
// source has that format, otherwise through floats, dequantised or quantised on the way.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/status.h"
#include "moe/weights.h"
#include "quant/formats.h"

namespace moe {

// The format in which `source` holds the experts (or the shared expert, kSharedExpert) of `layer`;
// bf16 if it does not know the layer.
Format source_format(const WeightSource& source, int32_t layer, int32_t expert);

// `id` (a gate, up or down) in a quantised `format` with the shape (outputs, inputs).
// invalid_argument for a wrong shape, data_loss for scales and group indices that are none, both
// with tensor and expert in their place.
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
