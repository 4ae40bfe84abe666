#include "checkpoint/quant_keys.h"

#include <algorithm>

#include <fmt/format.h>

namespace moe {
namespace {

constexpr int64_t kMostGroup = int64_t{1} << 20;

}  // namespace

std::optional<int32_t> square_block(const Json* block) {
  if (!block || block->items().size() != 2) return std::nullopt;
  const int64_t high = block->items()[0].integer().value_or(0);
  const int64_t wide = block->items()[1].integer().value_or(0);
  if (high != wide || high < 1 || high > kMostGroup) return std::nullopt;
  return static_cast<int32_t>(high);
}

const Json* QuantKeys::find(std::string_view key) const {
  const Json* value = object_.find(key);
  return value && !value->is_null() ? value : nullptr;
}

int64_t QuantKeys::whole(std::string_view key, int64_t otherwise) {
  const Json* value = find(key);
  if (!value) return otherwise;
  if (const auto number = value->integer()) return *number;
  refuse_kind(key, *value, "a whole number");
  return otherwise;
}

bool QuantKeys::flag(std::string_view key, bool otherwise) {
  const Json* value = find(key);
  if (!value) return otherwise;
  if (const auto flag = value->boolean()) return *flag;
  refuse_kind(key, *value, "true or false");
  return otherwise;
}

std::string QuantKeys::text(std::string_view key, std::string_view otherwise) {
  const Json* value = find(key);
  if (!value) return std::string(otherwise);
  if (const auto found = value->string()) {
    std::string lower(found->substr(0, 64));
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) {
      return static_cast<char>(c < 0x80 ? std::tolower(c) : c);
    });
    return lower;
  }
  refuse_kind(key, *value, "a text");
  return std::string(otherwise);
}

const Json* QuantKeys::object(std::string_view key) {
  const Json* value = find(key);
  if (value && !value->is_object()) refuse_kind(key, *value, "an object");
  return value && !value->members().empty() ? value : nullptr;
}

int32_t QuantKeys::group(int64_t otherwise) {
  const int64_t size = whole("group_size", otherwise);
  if (size == -1) return 0;
  if (size < 1 || size > kMostGroup)
    refuse("group_size", fmt::format("{}", size), "-1 or a number of inputs");
  return static_cast<int32_t>(std::clamp<int64_t>(size, 1, kMostGroup));
}

void QuantKeys::refuse_kind(std::string_view key, const Json& got, std::string_view wanted) {
  refuse(key, fmt::format("of kind {}", to_string(got.kind())), wanted);
}

void QuantKeys::refuse(std::string_view key, std::string_view got, std::string_view wanted) {
  if (!problem_.empty()) return;
  problem_ =
      fmt::format("{}{}{} is {}, wanted {}", path_, path_.empty() ? "" : ".", key, got, wanted);
}

}  // namespace moe
