// Fills a slot of the CPU backend.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gemm/cpu_layout.h"
#include "moe/status.h"
#include "moe/weights.h"

namespace moe::cpu {

// Reads the expert's canonical tensors, one at a time, and writes all sections(spec).bytes of
// `slot`. Quantised weights are widened where the spec's format is a float's. out_of_range if a
// finite weight does not fit into f16; errors of read_quantised().
Status pack_expert(const ExpertSpec& spec, const WeightSource& source, int32_t layer,
                   int32_t expert, std::byte* slot);

}  // namespace moe::cpu
