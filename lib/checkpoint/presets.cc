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

// Sorted by name.
constexpr Preset kPresets[] = {
    {"dbrx", "dbrx", 40, 16, 4, 6144, 10752, 0},
    {"deepseek-v2-lite", "deepseek_v2", 26, 64, 6, 2048, 1408, 2 * 1408},
    {"deepseek-v3", "deepseek_v3", 58, 256, 8, 7168, 2048, 2048},
    {"ernie-4.5-21b-a3b", "ernie4_5_moe", 27, 64, 6, 2560, 1536, 2 * 1536},
    {"glm-4.5", "glm4_moe", 89, 160, 8, 5120, 1536, 1536},
    {"glm-4.5-air", "glm4_moe", 45, 128, 8, 4096, 1408, 1408},
    {"gpt-oss-120b", "gpt_oss", 36, 128, 4, 2880, 2880, 0},
    {"gpt-oss-20b", "gpt_oss", 24, 32, 4, 2880, 2880, 0},
    {"granite-3.1-3b-a800m", "granitemoe", 32, 40, 8, 1536, 512, 0},
    {"hunyuan-a13b", "hunyuan_v1_moe", 32, 64, 8, 4096, 3072, 0},
    {"jamba-v0.1", "jamba", 16, 16, 2, 4096, 14336, 0},
    {"kimi-k2", "kimi_k2", 60, 384, 8, 7168, 2048, 2048},
    {"llama-4-maverick", "llama4_text", 24, 128, 1, 5120, 8192, 0},
    {"llama-4-scout", "llama4_text", 48, 16, 1, 5120, 8192, 0},
    {"longcat-flash", "longcat_flash", 28, 512, 12, 6144, 2048, 0},
    {"minimax-m2", "minimax_m2", 62, 256, 8, 3072, 1536, 0},
    {"mixtral-8x22b", "mixtral", 56, 8, 2, 6144, 16384, 0},
    {"mixtral-8x7b", "mixtral", 32, 8, 2, 4096, 14336, 0},
    {"olmoe-1b-7b", "olmoe", 16, 64, 8, 2048, 1024, 0},
    {"phi-3.5-moe", "phimoe", 32, 16, 2, 4096, 6400, 0},
    {"qwen1.5-moe-a2.7b", "qwen2_moe", 24, 60, 4, 2048, 1408, 5632},
    {"qwen2-57b-a14b", "qwen2_moe", 28, 64, 8, 3584, 2560, 20480},
    {"qwen3-235b-a22b", "qwen3_moe", 94, 128, 8, 4096, 1536, 0},
    {"qwen3-30b-a3b", "qwen3_moe", 48, 128, 8, 2048, 768, 0},
    {"qwen3-next-80b-a3b", "qwen3_next", 48, 512, 10, 2048, 512, 512},
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
