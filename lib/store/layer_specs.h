// Which layers of a source a store serves, and how it keeps their experts.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "moe/status.h"
#include "moe/weights.h"

namespace moe {

// The layers `wanted` of `source` (all if empty), their experts in `format` if it is given.
// invalid_argument for a layer that is not there, and for a spec that is none.
Result<std::vector<LayerSpec>> choose_layers(const WeightSource& source,
                                             std::span<const int32_t> wanted,
                                             const std::optional<Format>& format);

// ok if `source`, its experts in `format` as well, has the layers `kept`; else invalid_argument
// that says what differs.
Status check_same_layers(const WeightSource& source, std::span<const LayerSpec> kept,
                         const std::optional<Format>& format);

}  // namespace moe
