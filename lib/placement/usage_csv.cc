#include <charconv>
#include <optional>
#include <string>

#include "placement/text.h"
#include "placement/usage_builder.h"

namespace moe::placement {
namespace {

// Where the columns that matter are; -1 if absent.
struct Columns {
  int layer = -1, experts = -1, expert = -1, expert_a = -1, expert_b = -1, count = -1;
  std::vector<int> ids;  // e0, e1, ...
  size_t fields = 0;
};

Columns find_columns(std::string_view header) {
  Columns columns;
  for (std::string_view name : split(header, ',')) {
    const int at = static_cast<int>(columns.fields++);
    if (name == "layer") columns.layer = at;
    if (name == "experts") columns.experts = at;
    if (name == "expert") columns.expert = at;
    if (name == "expert_a") columns.expert_a = at;
    if (name == "expert_b") columns.expert_b = at;
    if (name == "count") columns.count = at;
    if (name == "e" + std::to_string(columns.ids.size())) columns.ids.push_back(at);
  }
  return columns;
}

template <class T>
std::optional<T> number(std::string_view text) {
  T value{};
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Status add_row(const Columns& columns, const std::vector<std::string_view>& fields,
               UsageBuilder& builder) {
  if (fields.size() != columns.fields)
    return invalid_argument({}, "{} fields; the header has {}", fields.size(), columns.fields);
  Status bad;
  const auto integer = [&](int column) {
    const auto value = number<int32_t>(fields[column]);
    if (!value) bad = invalid_argument({}, "\"{}\" is no integer", fields[column]);
    return value.value_or(0);
  };
  const int32_t layer = integer(columns.layer);
  if (columns.experts >= 0) {
    const int32_t experts = integer(columns.experts);
    MOE_RETURN_IF_ERROR(bad);
    MOE_RETURN_IF_ERROR(builder.set_experts(layer, experts));
  }
  if (!columns.ids.empty()) {
    std::vector<int32_t> ids;
    for (int column : columns.ids)
      if (!fields[column].empty()) ids.push_back(integer(column));  // empty: none, as in a trace
    MOE_RETURN_IF_ERROR(bad);
    return builder.add_token(layer, std::move(ids));
  }
  const auto count = number<double>(fields[columns.count]);
  if (!count) return invalid_argument({}, "\"{}\" is no number", fields[columns.count]);
  if (columns.expert >= 0) {
    const int32_t expert = integer(columns.expert);
    MOE_RETURN_IF_ERROR(bad);
    return builder.add_count(layer, expert, *count);
  }
  const int32_t a = integer(columns.expert_a), b = integer(columns.expert_b);
  MOE_RETURN_IF_ERROR(bad);
  if (a == b) return invalid_argument({}, "expert {} paired with itself", a);
  return builder.add_set(layer, {std::min(a, b), std::max(a, b)}, *count);
}

}  // namespace

Result<UsageTrace> parse_usage_csv(std::string_view text, const UsageFileOptions& options) {
  const size_t header_end = std::min(text.find('\n'), text.size());
  const std::string_view header = trimmed(text.substr(0, header_end));
  const Columns columns = find_columns(header);
  const bool counted = columns.count >= 0 &&
                       (columns.expert >= 0 || (columns.expert_a >= 0 && columns.expert_b >= 0));
  if (columns.layer < 0 || (columns.ids.empty() && !counted))
    return invalid_argument({},
                            "the CSV header \"{}\" lacks layer,e0,e1,... or "
                            "layer,expert,count or layer,expert_a,expert_b,count",
                            header);
  UsageBuilder builder;
  Status status;
  int64_t line_number = 1;
  for_each_piece(text.substr(header_end), '\n', [&](std::string_view line) {
    if (trimmed(line).empty()) return ++line_number, true;
    status = add_row(columns, split(line, ','), builder);
    if (!status.ok())
      status = invalid_argument({}, "line {}: {}", line_number - 1, status.message());
    return ++line_number, status.ok();
  });
  MOE_RETURN_IF_ERROR(status);
  return builder.finish(options);
}

}  // namespace moe::placement
