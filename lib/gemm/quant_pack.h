// Fills a slot with int8 or int4 panels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gemm/quant_layout.h"
#include "moe/status.h"
#include "moe/weights.h"

namespace moe::cpu {

// Reads the expert's canonical tensors, one matrix at a time, quantises those that the source has
// as floats, and writes all quant_sections(spec).bytes of `slot`. Errors of read_quantised();
// unimplemented if the groups of act-order cannot be laid side by side: one has more inputs than
// Format::group, or gate and up have different ones.
Status pack_quant_expert(const ExpertSpec& spec, const WeightSource& source, int32_t layer,
                         int32_t expert, std::byte* slot);

}  // namespace moe::cpu
