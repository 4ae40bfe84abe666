// The integer schemes that a quantization_config can describe. What of it is not understood is
// refused in `keys`, and the result means nothing then.
#pragma once

#include "checkpoint/quant_keys.h"
#include "checkpoint/quantized.h"

namespace moe {

QuantScheme awq_scheme(QuantKeys& keys);
QuantScheme gptq_scheme(QuantKeys& keys);
// compressed-tensors: pack-quantized, int-quantized and, of fp8, float-quantized.
QuantScheme compressed_scheme(QuantKeys& keys);

}  // namespace moe
