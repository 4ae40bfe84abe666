// What config.json says of a checkpoint whose experts are packed as compressed-tensors.
#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "moe/weights.h"

namespace moe {

// `config` with a quantization_config in place of any that it had. `ignored` are the modules that
// stay as they were.
std::string quantized_config(const Json& config, const Format& format,
                             const std::vector<std::string>& ignored);

}  // namespace moe
