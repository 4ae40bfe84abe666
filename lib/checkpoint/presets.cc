// Sizes of published models, as their config.json gives them. `layers` counts the MoE layers.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.h"
#include "moe/checkpoint.h"

namespace moe {
namespace {

struct Preset {
  std::string_view model, family;
  int32_t layers, experts, top_k;
  int64_t hidden, intermediate, shared_intermediate;
};

constexpr Preset kPresets[] = {
    {"deepseek-v3", "deepseek_v3", 58, 256, 8, 7168, 2048, 2048},
    {"mixtral-8x22b", "mixtral", 56, 8, 2, 6144, 16384, 0},
    {"mixtral-8x7b", "mixtral", 32, 8, 2, 4096, 14336, 0},
    {"qwen3-30b-a3b", "qwen3_moe", 48, 128, 8, 2048, 768, 0},
};

}  // namespace

std::vector<std::string_view> synthetic_models() {
  std::vector<std::string_view> names;
  for (const Preset& preset : kPresets) names.push_back(preset.model);
  return names;
}

Result<SyntheticSpec> synthetic_like(std::string_view model) {
  return guarded({}, [&]() -> Result<SyntheticSpec> {
    for (const Preset& p : kPresets)
      if (p.model == model)
        return SyntheticSpec{.family = p.family,
                             .layers = p.layers,
                             .experts = p.experts,
                             .top_k = p.top_k,
                             .hidden = p.hidden,
                             .intermediate = p.intermediate,
                             .shared_intermediate = p.shared_intermediate};
    return error(StatusCode::not_found, {}, "no model is called \"{}\"; known: {}", model,
                 fmt::join(synthetic_models(), ", "));
  });
}

}  // namespace moe
