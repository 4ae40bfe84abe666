// Fills a slot of the GPU's layout (gemm/layout.h) on the host.
#pragma once

#include "gemm/layout.h"
#include "moe/status.h"
#include "moe/weights.h"

namespace moe::cuda {

// The shape of a slot for `spec`: e4m3 for weights in fp8, otherwise bf16.
SlotShape slot_shape(const ExpertSpec& spec);

// Reads the expert's canonical tensors and writes all slot_sections(slot_shape(spec)).bytes of
// `slot`; weights that are not fp8 are rounded to bf16. Errors of the source, and data_loss for fp8
// scales that are none (read_quantised()).
Status pack_slot(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
                 std::byte* slot);

}  // namespace moe::cuda
