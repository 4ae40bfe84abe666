#include <algorithm>

#include "checkpoint/arch.h"

namespace moe {

// The list of families: one arch_*.cc per row, which defines the function named here.
FamilyRows afmoe_rows, bailing_rows, cohere_rows, dbrx_rows, deepseek_rows, deepseek_v4_rows,
    ernie_rows, gemma4_rows, gpt_oss_rows, granite_rows, grok_rows, hunyuan_rows, jamba_rows,
    jetmoe_rows, kimi_linear_rows, lfm2_rows, llama4_rows, longcat_rows, mixtral_rows,
    nemotron_rows, qwen_rows, step_rows, switch_rows;
FamilyRows* const kArchitectures[] = {
    afmoe_rows,   bailing_rows,  cohere_rows,      dbrx_rows,    deepseek_rows, deepseek_v4_rows,
    ernie_rows,   gemma4_rows,   gpt_oss_rows,     granite_rows, grok_rows,     hunyuan_rows,
    jamba_rows,   jetmoe_rows,   kimi_linear_rows, lfm2_rows,    llama4_rows,   longcat_rows,
    mixtral_rows, nemotron_rows, qwen_rows,        step_rows,    switch_rows};

const Family* find_family(std::string_view model_type) {
  for (FamilyRows* rows : kArchitectures)
    for (const Family& family : rows())
      if (family.model_type == model_type) return &family;
  return nullptr;
}

const Family* find_architecture(std::string_view architecture) {
  for (FamilyRows* rows : kArchitectures)
    for (const Family& family : rows())
      if (!architecture.empty() && family.architecture == architecture) return &family;
  return nullptr;
}

std::vector<std::string_view> family_names() {
  std::vector<std::string_view> names;
  for (FamilyRows* rows : kArchitectures)
    for (const Family& family : rows()) names.push_back(family.model_type);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace moe
