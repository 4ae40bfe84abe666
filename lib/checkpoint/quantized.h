// Quantised checkpoints, by the name that their makers use.
#pragma once

#include <string>
#include <string_view>

#include "core/json.h"
#include "moe/status.h"
#include "moe/weights.h"
#include "quant/packed.h"

namespace moe {

// "fp8 in 128 x 128 blocks", "compressed-tensors nvfp4-pack-quantized", ...: the format that
// config.json's quantization_config describes.
std::string quantization_name(const Json& config);

// How quantised modules are stored. Which modules these are, the tensors themselves say: lists of
// modules left out need not be read.
struct QuantScheme {
  Format format;                    // but for the type of the scales, which the tensors say
  Packing packing = Packing::none;  // none: an element a byte, under the matrix's own name

  friend bool operator==(const QuantScheme&, const QuantScheme&) = default;
};

// That of a quantization_config. unimplemented, with the name and what is not understood, for one
// that cannot be read; `file` is where `config` stands.
Result<QuantScheme> quant_scheme(const Json& config, std::string_view file);

}  // namespace moe
