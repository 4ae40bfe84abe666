#include <cmath>
#include <numeric>
#include <string>

#include "core/input_file.h"
#include "core/new_file.h"
#include "placement/text.h"
#include "placement/usage_builder.h"

namespace moe {
namespace {

using Parser = Result<UsageTrace> (*)(std::string_view, const UsageFileOptions&);

// JSON lines are several objects; anything else that begins with a brace is one.
Parser parser_of(std::string_view text) {
  if (!text.starts_with('{')) return placement::parse_usage_csv;
  const std::string_view line = text.substr(0, text.find('\n'));
  const auto has = [&](std::string_view key) { return line.find(key) != line.npos; };
  if (has("\"experts\"") && !has("\"logical_count\"")) return placement::parse_usage_lines;
  return placement::parse_usage_json;
}

bool is_dense(const LayerUsage& layer) {
  return std::accumulate(layer.tokens.begin(), layer.tokens.end(), 0.0) == 0;
}

}  // namespace

Result<UsageTrace> parse_usage(std::string_view text, std::string_view name,
                               const UsageFileOptions& options) {
  return guarded({.file = name, .phase = Phase::plan}, [&]() -> Result<UsageTrace> {
    const Place place{.file = name, .phase = Phase::plan};
    if (!(options.coverage > 0 && options.coverage <= 1))
      return invalid_argument(place, "coverage is {}; wanted 0 < coverage <= 1", options.coverage);
    text = placement::trimmed(text);
    if (text.empty()) return invalid_argument(place, "the usage is empty");
    Result<UsageTrace> trace = parser_of(text)(text, options);
    if (!trace.ok()) return trace.status().at(place);
    std::erase_if(trace->layers, is_dense);
    if (trace->layers.empty()) return invalid_argument(place, "no layer has any tokens");
    if (Status status = validate(*trace); !status.ok()) return status.at(place);
    return trace;
  });
}

Result<UsageTrace> read_usage(std::string_view path, const UsageFileOptions& options) {
  return guarded({.file = path, .phase = Phase::plan}, [&]() -> Result<UsageTrace> {
    MOE_ASSIGN_OR_RETURN(const auto file, open_input(path));
    std::string text;
    for (size_t got = 1; got > 0;) {
      constexpr size_t kPiece = 1 << 20;
      const size_t size = text.size();
      text.resize(size + kPiece);
      MOE_ASSIGN_OR_RETURN(got, file->read(text.data() + size, kPiece));
      text.resize(size + got);
    }
    return parse_usage(text, path, options);
  });
}

Status write_usage(const UsageTrace& usage, std::string_view path) {
  return guarded({.file = path}, [&]() -> Status {
    MOE_ASSIGN_OR_RETURN(NewFile file, NewFile::create(std::string(path)));
    MOE_RETURN_IF_ERROR(file.write(write_usage(usage)));
    return file.commit();
  });
}

}  // namespace moe
