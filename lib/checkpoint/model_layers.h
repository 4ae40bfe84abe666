// From config.json to the family and its MoE layers, before any tensor is looked at.
#pragma once

#include <vector>

#include "checkpoint/family.h"
#include "checkpoint/model_config.h"

namespace moe {

struct ModelLayers {
  const Family* family = nullptr;
  std::vector<FamilyLayer> layers;  // validated, ascending; never empty
};

// unimplemented, with the nearest known name, for a model_type that is not in the table.
Result<ModelLayers> model_layers(ModelConfig& config);

}  // namespace moe
