// Quantised checkpoints, by the name that their makers use.
#pragma once

#include <string>

#include "core/json.h"

namespace moe {

// "fp8 in 128 x 128 blocks", "compressed-tensors nvfp4-pack-quantized", ...: the format that
// config.json's quantization_config describes.
std::string quantization_name(const Json& config);

}  // namespace moe
