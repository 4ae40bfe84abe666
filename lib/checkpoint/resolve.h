// Matches the layers that config.json promises with the tensors that are there.
#pragma once

#include <optional>
#include <vector>

#include "checkpoint/layer_tensors.h"
#include "checkpoint/quantized.h"
#include "checkpoint/tensor_directory.h"

namespace moe {

// Chooses prefix, names and layouts by what is present, and checks every tensor of every layer:
// presence, type, shape. Sets the formats in the specs. A refusal names all that is missing.
// `scheme` is how those matrices are stored that are quantised.
Result<std::vector<LayerTensors>> resolve_layers(const Family& family,
                                                 const std::vector<FamilyLayer>& layers,
                                                 const TensorDirectory& directory,
                                                 const std::optional<QuantScheme>& scheme);

}  // namespace moe
