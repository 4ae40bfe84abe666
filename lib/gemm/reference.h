// The oracle: one expert on one row, and one whole block, straight from canonical weights in double
// arithmetic. Slow and obvious; what every backend is measured against.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/router.h"
#include "moe/status.h"
#include "moe/tensor.h"
#include "moe/weights.h"

namespace moe {

// Canonical matrices [out][in] of one expert as f32. gate is empty where the expert is not gated,
// the biases where it has none.
struct ReferenceExpert {
  ExpertSpec spec;
  std::vector<float> gate, up, down;
  std::vector<float> gate_bias, up_bias, down_bias;
};

// The element type of a canonical tensor.
// invalid_argument if the source's shape is not `shape`; unimplemented if its type is no float.
Result<DType> float_type(const WeightSource& source, const WeightId& id, const Dims& shape);

// One canonical tensor, exactly as stored, as f32 in row-major order. Errors of float_type().
Result<std::vector<float>> read_f32(const WeightSource& source, const WeightId& id,
                                    const Dims& shape);

Result<ReferenceExpert> read_reference_expert(const ExpertSpec& spec, const WeightSource& source,
                                              int32_t layer, int32_t expert);

// activation(g, u) of weights.h. `gate` is ignored where spec.gated is false.
double activate_reference(const ExpertSpec& spec, double gate, double up);

// y = expert(x): x and y have spec.hidden elements.
void expert_forward_reference(const ReferenceExpert& expert, const double* x, double* y);

// The block's output for rows that are already routed: the weighted sum in ascending expert index,
// zero experts and the shared expert included. `hidden` is (tokens, hidden) of any float type,
// `out` (tokens, hidden). Holds one expert in memory at a time. Exported for the program `moe`.
MOE_API Status block_forward_reference(const WeightSource& source, int32_t layer,
                                       const TensorView& hidden, const Routing& routing,
                                       double* out);

}  // namespace moe
