#include <algorithm>

#include "checkpoint/arch.h"

namespace moe {

// The list of families: one arch_*.cc per row, which defines the function named here.
FamilyRows deepseek_rows, mixtral_rows, qwen_rows;
FamilyRows* const kArchitectures[] = {
    mixtral_rows,
    qwen_rows,
    deepseek_rows,
};

const Family* find_family(std::string_view model_type) {
  for (FamilyRows* rows : kArchitectures)
    for (const Family& family : rows())
      if (family.model_type == model_type) return &family;
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
