#include "store/trace_parser.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>

#include "core/error.h"
#include "core/input_file.h"
#include "store/trace_check.h"

namespace moe {
namespace {

constexpr size_t kLongestLine = 1 << 20;
constexpr size_t kPiece = 1 << 16;

template <class T>
bool number(std::string_view text, T& out) {
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), out);
  return parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
}

// Takes the next comma-separated field off `text`, without the spaces around it; false after the
// last one, when `text` has no data.
bool next_field(std::string_view& text, std::string_view& field) {
  if (!text.data()) return false;
  const size_t comma = text.find(',');
  field = text.substr(0, comma);
  text = comma == text.npos ? std::string_view() : text.substr(comma + 1);
  constexpr std::string_view kSpace = " \t\r";
  field.remove_prefix(std::min(field.find_first_not_of(kSpace), field.size()));
  field = field.substr(0, field.find_last_not_of(kSpace) + 1);
  return true;
}

// k of "e<k>" or "w<k>".
std::optional<size_t> place_of(std::string_view name, char letter) {
  size_t place = 0;
  if (name.empty() || name.front() != letter || !number(name.substr(1), place)) return {};
  return place;
}

}  // namespace

Status TraceParser::feed(std::string_view text) {
  for (size_t end; (end = text.find('\n')) != text.npos; text.remove_prefix(end + 1)) {
    if (rest_.empty()) {
      MOE_RETURN_IF_ERROR(line(text.substr(0, end)));
      continue;
    }
    rest_ += text.substr(0, end);
    MOE_RETURN_IF_ERROR(line(rest_));
    rest_.clear();
  }
  rest_ += text;
  if (rest_.size() > kLongestLine)
    return invalid_argument({.file = name_}, "line {} is longer than {} bytes", line_ + 1,
                            kLongestLine);
  return {};
}

Result<RoutingTrace> TraceParser::finish() {
  if (!rest_.empty()) MOE_RETURN_IF_ERROR(line(rest_));
  if (columns_.empty()) return invalid_argument({.file = name_}, "the file is empty");
  for (size_t layer = 0; layer < experts_of_layer_.size(); ++layer) {
    if (experts_of_layer_[layer] > 0)
      trace_.layers.push_back({static_cast<int32_t>(layer), experts_of_layer_[layer]});
  }
  if (trace_.rows.empty()) return invalid_argument({.file = name_}, "the trace has no rows");
  MOE_RETURN_IF_ERROR(validate(trace_).at({.file = name_}));
  return std::move(trace_);
}

Status TraceParser::line(std::string_view text) {
  ++line_;
  if (text.empty() || text == "\r") return {};
  return columns_.empty() ? header(text) : row(text);
}

Status TraceParser::header(std::string_view text) {
  std::set<size_t> experts, weights;
  bool has_layer = false, twice = false;
  std::string_view names = text, name;
  while (next_field(names, name)) {
    Column column;
    if (name == "seq") column.kind = Kind::seq;
    if (name == "step") column.kind = Kind::step;
    if (name == "token_pos") column.kind = Kind::token_pos;
    if (name == "layer") column.kind = Kind::layer, has_layer = true;
    if (name == "experts") column.kind = Kind::experts, declared_ = true;
    if (const auto e = place_of(name, 'e')) {
      column = {Kind::expert, *e};
      twice |= !experts.insert(*e).second;
    }
    if (const auto w = place_of(name, 'w')) {
      column = {Kind::weight, *w};
      twice |= !weights.insert(*w).second;
    }
    columns_.push_back(column);
  }
  const size_t top_k = experts.size();
  const auto complete = [](const std::set<size_t>& places) {
    return places.empty() || *places.rbegin() + 1 == places.size();
  };
  if (!has_layer || twice || top_k == 0 || !complete(experts))
    return invalid_argument(
        {.file = name_}, "line {}: the header is '{}'; wanted layer, and each of e0, e1, ... once",
        line_, text.substr(0, 200));
  if (!weights.empty() && weights != experts)
    return invalid_argument({.file = name_}, "line {}: {} columns of experts but {} of weights",
                            line_, top_k, weights.size());
  if (top_k > static_cast<size_t>(kMostTraceTopK))
    return invalid_argument({.file = name_}, "line {}: {} columns of experts; wanted at most {}",
                            line_, top_k, kMostTraceTopK);
  trace_.top_k = static_cast<int32_t>(top_k);
  ids_.resize(top_k);
  weights_.resize(weights.size());
  return {};
}

Status TraceParser::row(std::string_view text) {
  row_ = {};
  row_experts_ = 0;
  std::fill(ids_.begin(), ids_.end(), -1);
  std::fill(weights_.begin(), weights_.end(), 0.0f);
  size_t fields = 0;
  std::string_view field;
  while (next_field(text, field)) {
    if (fields < columns_.size() && !take(columns_[fields], field))
      return invalid_argument({.file = name_}, "line {}: field {} is '{}'; wanted a number", line_,
                              fields + 1, field.substr(0, 80));
    ++fields;
  }
  if (fields != columns_.size())
    return invalid_argument({.file = name_}, "line {}: {} fields; the header has {}", line_, fields,
                            columns_.size());
  return keep_row();
}

bool TraceParser::take(const Column& column, std::string_view text) {
  switch (column.kind) {
    case Kind::skip: return true;
    case Kind::seq: return number(text, row_.seq);
    case Kind::step: return number(text, row_.step);
    case Kind::token_pos: return number(text, row_.token_pos);
    case Kind::layer: return number(text, row_.layer);
    case Kind::experts: return number(text, row_experts_);
    case Kind::expert: return text.empty() || number(text, ids_[column.place]);
    case Kind::weight: return text.empty() || number(text, weights_[column.place]);
  }
  return false;
}

Status TraceParser::keep_row() {
  const int32_t highest = *std::max_element(ids_.begin(), ids_.end());
  const int32_t experts = declared_ ? row_experts_ : std::max(0, highest) + 1;
  std::string fault = trace_row_fault(row_, experts, ids_, weights_);
  if (fault.empty()) {
    const size_t layer = static_cast<size_t>(row_.layer);
    if (layer >= experts_of_layer_.size()) experts_of_layer_.resize(layer + 1);
    int32_t& known = experts_of_layer_[layer];
    if (declared_ && (experts < 1 || (known > 0 && known != experts)))
      fault = fmt::format("layer {} has {} experts here and {} before", layer, experts, known);
    known = std::max(known, experts);
  }
  if (!fault.empty()) return invalid_argument({.file = name_}, "line {}: {}", line_, fault);
  trace_.rows.push_back(row_);
  trace_.experts.insert(trace_.experts.end(), ids_.begin(), ids_.end());
  trace_.weights.insert(trace_.weights.end(), weights_.begin(), weights_.end());
  return {};
}

Result<RoutingTrace> parse_trace(std::string_view text, std::string_view name) {
  return guarded({.file = name}, [&]() -> Result<RoutingTrace> {
    TraceParser parser(name);
    MOE_RETURN_IF_ERROR(parser.feed(text));
    return parser.finish();
  });
}

Result<RoutingTrace> read_trace(std::string_view path) {
  return guarded({.file = path}, [&]() -> Result<RoutingTrace> {
    MOE_ASSIGN_OR_RETURN(const auto file, open_input(path));
    TraceParser parser(path);
    std::string piece(kPiece, '\0');
    while (true) {
      MOE_ASSIGN_OR_RETURN(const size_t size, file->read(piece.data(), piece.size()));
      if (size == 0) return parser.finish();
      MOE_RETURN_IF_ERROR(parser.feed({piece.data(), size}));
    }
  });
}

}  // namespace moe
