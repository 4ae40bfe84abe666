// Quantised checkpoints, by the name that their makers use.
#pragma once

#include <string>
#include <string_view>

#include "core/json.h"
#include "moe/status.h"
#include "moe/weights.h"

namespace moe {

// "fp8 in 128 x 128 blocks", "compressed-tensors nvfp4-pack-quantized", ...: the format that
// config.json's quantization_config describes.
std::string quantization_name(const Json& config);

// The format of its quantised matrices, but for the type of the scales. Which matrices these are,
// the tensors themselves say: lists of modules left out need not be read. unimplemented, with the
// name, for a format that cannot be read; `file` is where `config` stands.
Result<Format> quantized_format(const Json& config, std::string_view file);

}  // namespace moe
