// Fills a slot of the GPU's layout (gemm/layout.h) on the host.
#pragma once

#include "gemm/layout.h"
#include "moe/status.h"
#include "moe/weights.h"

namespace moe::cuda {

// The shape of a slot for `spec` in bf16.
SlotShape slot_shape(const ExpertSpec& spec);

// Reads the expert's canonical tensors and writes all slot_sections(slot_shape(spec)).bytes of
// `slot`; weights are rounded to bf16.
Status pack_bf16(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
                 std::byte* slot);

}  // namespace moe::cuda
