// Refuses a forward whose arguments do not fit, before anything is touched.
#pragma once

#include "moe/model.h"

namespace moe {

// `rows` receives the rows to compute: those of `hidden`, or on the CPU *options.valid_rows; what
// lies on a GPU is not looked at.
Status check_forward(const LayerSpec& spec, const TensorView& hidden, const MutableTensorView& out,
                     const ForwardOptions& options, Device device, int64_t* rows);

}  // namespace moe
