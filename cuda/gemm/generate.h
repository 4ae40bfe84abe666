// Fills a slot of the GPU's layout (gemm/layout.h) on the GPU, with weights that are a function.
#pragma once

#include <cuda_runtime_api.h>

#include "checkpoint/generated.h"
#include "moe/status.h"

namespace moe::cuda {

// Enqueues what writes the bytes that pack_slot() of the same source would.
Status generate_slot(const ExpertSpec& spec, const GeneratedWeights& weights, int32_t layer,
                     int32_t expert, std::byte* slot, cudaStream_t stream);

}  // namespace moe::cuda
