// Weights that are a function of where they stand, so that a device can compute them where they are
// needed: a full-size layer is 22 GB, which no benchmark should make on the host and copy.
#pragma once

#include <cstdint>

#include "moe/status.h"
#include "moe/weights.h"

namespace moe {

// A canonical tensor: element (row, column) is, as `dtype`,
//   offset + scale * synthetic_value(key, base + row * row_step + column * column_step)
struct GeneratedTensor {
  uint64_t key = 0;
  float scale = 0;
  float offset = 0;
  int64_t base = 0;
  int64_t row_step = 0;
  int64_t column_step = 0;
  DType dtype = DType::bf16;
};

// What a WeightSource is beside, if its experts can be computed. Safe for concurrent use.
class GeneratedWeights {
 public:
  virtual ~GeneratedWeights() = default;
  // Of the kinds from WeightKind::gate on: the values that WeightSource::read() would give.
  virtual Result<GeneratedTensor> generated(const WeightId& id) const = 0;
};

}  // namespace moe
