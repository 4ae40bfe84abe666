// config.json of a synthetic model.
#pragma once

#include <string>

#include "checkpoint/family.h"
#include "moe/checkpoint.h"

namespace moe {

// The usual keys plus the family's own text, in which these stand for numbers: $experts
// $half_experts $top_k $hidden $intermediate $layers $shared (width of the shared experts together)
// $shared_experts (how many) $groups $top_groups, $indices (of the layers), and $each(word) for a
// list of `word` once per layer. invalid_argument, naming the field of `spec`, if there can be no
// such model.
Result<std::string> synthetic_config(const SyntheticSpec& spec, const Family& family);

}  // namespace moe
