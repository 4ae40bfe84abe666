#include "core/json.h"

#include <cmath>
#include <new>
#include <unordered_set>

#include <simdjson.h>

#include "core/error.h"
#include "core/file.h"

namespace moe {

namespace dom = simdjson::dom;

class JsonBuilder {
 public:
  explicit JsonBuilder(const Place& place) : place_(place) {}

  Result<Json> document(std::string_view text) {
    dom::parser parser;
    dom::element root;
    const simdjson::padded_string padded(text);
    if (!padded.data()) throw std::bad_alloc();
    const simdjson::error_code failure = parser.parse(padded).get(root);
    if (failure == simdjson::MEMALLOC) throw std::bad_alloc();
    if (failure) return refuse("not valid JSON: {}", simdjson::error_message(failure));
    Json result;
    MOE_RETURN_IF_ERROR(convert(root, 0, &result));
    return result;
  }

 private:
  static constexpr int kMaxDepth = 64;

  Status convert(const dom::element& from, int depth, Json* to) {
    if (depth > kMaxDepth) return refuse("nested more than {} levels deep", kMaxDepth);
    switch (from.type()) {
      case dom::element_type::NULL_VALUE: return {};
      case dom::element_type::BOOL: return to->value_ = bool(from), Status();
      case dom::element_type::INT64: return to->value_ = int64_t(from), Status();
      case dom::element_type::DOUBLE: return to->value_ = double(from), Status();
      case dom::element_type::STRING:
        return to->value_ = std::string(std::string_view(from)), Status();
      case dom::element_type::ARRAY: return convert(dom::array(from), depth, to);
      case dom::element_type::OBJECT: return convert(dom::object(from), depth, to);
      default: return refuse("the integer {} does not fit into 64 bits with sign", uint64_t(from));
    }
  }

  Status convert(const dom::array& from, int depth, Json* to) {
    auto& items = to->value_.emplace<std::vector<Json>>();
    for (const dom::element& item : from)
      MOE_RETURN_IF_ERROR(convert(item, depth + 1, &items.emplace_back()));
    return {};
  }

  Status convert(const dom::object& from, int depth, Json* to) {
    auto& members = to->value_.emplace<std::vector<Json::Member>>();
    std::unordered_set<std::string_view> keys;
    for (const auto& [key, value] : from) {
      if (!keys.insert(key).second)
        return refuse("the key {} appears twice in one object", json_quoted(key));
      MOE_RETURN_IF_ERROR(convert(value, depth + 1, &members.emplace_back(key, Json()).second));
    }
    return {};
  }

  template <class... Args>
  Status refuse(fmt::format_string<Args...> format, Args&&... args) {
    return invalid_argument(place_, "{}: {}; correct the file or fetch it again", place_.file,
                            fmt::format(format, std::forward<Args>(args)...));
  }

  Place place_;
};

Result<Json> Json::parse(std::string_view text, const Place& place) {
  return guarded(place, [&] { return JsonBuilder(place).document(text); });
}

Result<Json> Json::read(const std::string& path) {
  MOE_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  return parse(text, {.file = path, .phase = Phase::open});
}

std::optional<bool> Json::boolean() const {
  const bool* flag = std::get_if<bool>(&value_);
  return flag ? std::optional(*flag) : std::nullopt;
}
std::optional<int64_t> Json::integer() const {
  const int64_t* integer = std::get_if<int64_t>(&value_);
  return integer ? std::optional(*integer) : std::nullopt;
}
std::optional<double> Json::number() const {
  if (auto whole = integer()) return static_cast<double>(*whole);
  const double* number = std::get_if<double>(&value_);
  return number ? std::optional(*number) : std::nullopt;
}
std::optional<std::string_view> Json::string() const {
  const std::string* text = std::get_if<std::string>(&value_);
  return text ? std::optional<std::string_view>(*text) : std::nullopt;
}

const std::vector<Json>& Json::items() const {
  static const std::vector<Json> kNone;
  const auto* items = std::get_if<std::vector<Json>>(&value_);
  return items ? *items : kNone;
}
const std::vector<Json::Member>& Json::members() const {
  static const std::vector<Member> kNone;
  const auto* members = std::get_if<std::vector<Member>>(&value_);
  return members ? *members : kNone;
}

const Json* Json::find(std::string_view key) const {
  for (const Member& member : members())
    if (member.first == key) return &member.second;
  return nullptr;
}

namespace {
// `get` asks the member for its value; without one, `wanted` goes into the message.
template <class T>
Result<T> member(const Json& object, std::string_view key, std::optional<T> (Json::*get)() const,
                 const char* wanted) {
  const Json* found = object.find(key);
  if (!found)
    return invalid_argument({}, "{} is missing; {} is expected", json_quoted(key), wanted);
  if (auto value = (found->*get)()) return *value;
  return invalid_argument({}, "{} is of kind {}; {} is expected", json_quoted(key),
                          to_string(found->kind()), wanted);
}
bool absent(const Json& object, std::string_view key) {
  const Json* found = object.find(key);
  return !found || found->is_null();
}
}  // namespace

Result<bool> Json::boolean(std::string_view key) const {
  return member<bool>(*this, key, &Json::boolean, "true or false");
}
Result<int64_t> Json::integer(std::string_view key) const {
  return member<int64_t>(*this, key, &Json::integer, "an integer");
}
Result<double> Json::number(std::string_view key) const {
  return member<double>(*this, key, &Json::number, "a number");
}
Result<std::string_view> Json::string(std::string_view key) const {
  return member<std::string_view>(*this, key, &Json::string, "a string");
}
Result<bool> Json::boolean(std::string_view key, bool otherwise) const {
  return absent(*this, key) ? otherwise : boolean(key);
}
Result<int64_t> Json::integer(std::string_view key, int64_t otherwise) const {
  return absent(*this, key) ? otherwise : integer(key);
}
Result<double> Json::number(std::string_view key, double otherwise) const {
  return absent(*this, key) ? otherwise : number(key);
}
Result<std::string_view> Json::string(std::string_view key, std::string_view otherwise) const {
  return absent(*this, key) ? otherwise : string(key);
}

const char* to_string(Json::Kind kind) {
  switch (kind) {
    case Json::Kind::null: return "null";
    case Json::Kind::boolean: return "boolean";
    case Json::Kind::integer: return "integer";
    case Json::Kind::number: return "number";
    case Json::Kind::string: return "string";
    case Json::Kind::array: return "array";
    case Json::Kind::object: return "object";
  }
  return "unknown";
}

std::string json_quoted(std::string_view text) {
  constexpr std::string_view kNamed = "\"\\\b\f\n\r\t", kLetters = "\"\\bfnrt";
  std::string out = "\"";
  for (char c : text) {
    if (const size_t at = kNamed.find(c); at != std::string_view::npos)
      out.append({'\\', kLetters[at]});
    else if (static_cast<unsigned char>(c) < 0x20)
      out += fmt::format("\\u{:04x}", static_cast<int>(c));
    else
      out += c;
  }
  return out += '"';
}

JsonWriter& JsonWriter::key(std::string_view name) {
  separate();
  text_ += json_quoted(name);
  text_ += ':';
  first_ = true;
  return *this;
}

// Shortest digits that read back as the same number, and never as an integer.
JsonWriter& JsonWriter::value(double number) {
  if (!std::isfinite(number)) return null();
  std::string digits = fmt::format("{}", number);
  if (digits.find_first_of(".e") == std::string::npos) digits += ".0";
  return token(digits);
}
JsonWriter& JsonWriter::value(int64_t number) { return token(fmt::format("{}", number)); }
JsonWriter& JsonWriter::value(uint64_t number) { return token(fmt::format("{}", number)); }

JsonWriter& JsonWriter::open(char bracket) {
  separate();
  text_ += bracket;
  first_ = true;
  return *this;
}
JsonWriter& JsonWriter::close(char bracket) {
  text_ += bracket;
  first_ = false;
  return *this;
}
JsonWriter& JsonWriter::token(std::string_view token) {
  separate();
  text_ += token;
  return *this;
}
void JsonWriter::separate() {
  if (!first_) text_ += ',';
  first_ = false;
}

}  // namespace moe
