// JSON of configuration size (config.json, indexes, reports): an owned value that is easy to ask,
// and a writer. Strict: RFC 8259, no duplicate keys, no integer outside int64, at most 64 levels.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "moe/status.h"

namespace moe {

// Immutable once parsed.
class Json {
 public:
  enum class Kind { null, boolean, integer, number, string, array, object };
  using Member = std::pair<std::string, Json>;

  // invalid_argument with the file of `place` and the key at fault.
  static Result<Json> parse(std::string_view text, const Place& place);
  // The same for a file's content.
  static Result<Json> read(const std::string& path);

  Kind kind() const { return static_cast<Kind>(value_.index()); }
  bool is_null() const { return kind() == Kind::null; }
  bool is_object() const { return kind() == Kind::object; }
  bool is_array() const { return kind() == Kind::array; }

  // The value if it is of that kind. number() takes integers too.
  std::optional<bool> boolean() const;
  std::optional<int64_t> integer() const;
  std::optional<double> number() const;
  std::optional<std::string_view> string() const;

  const std::vector<Json>& items() const;      // empty unless an array
  const std::vector<Member>& members() const;  // in file order; empty unless an object

  // The member `key`, or null if there is none or this is no object. Linear in the members.
  const Json* find(std::string_view key) const;

  // The member `key`, or invalid_argument that names key, kind found and kind wanted.
  Result<bool> boolean(std::string_view key) const;
  Result<int64_t> integer(std::string_view key) const;
  Result<double> number(std::string_view key) const;
  Result<std::string_view> string(std::string_view key) const;

  // The same, but `otherwise` if the member is absent or null.
  Result<bool> boolean(std::string_view key, bool otherwise) const;
  Result<int64_t> integer(std::string_view key, int64_t otherwise) const;
  Result<double> number(std::string_view key, double otherwise) const;
  Result<std::string_view> string(std::string_view key, std::string_view otherwise) const;

 private:
  friend class JsonBuilder;
  // In the order of Kind.
  std::variant<std::monostate, bool, int64_t, double, std::string, std::vector<Json>,
               std::vector<Member>>
      value_;
};

const char* to_string(Json::Kind kind);

// `text` between quotes, with everything escaped that JSON wants escaped.
std::string json_quoted(std::string_view text);

// Writes compact JSON; commas are its own business. Non-finite numbers become null.
class JsonWriter {
 public:
  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }
  JsonWriter& key(std::string_view name);

  JsonWriter& null() { return token("null"); }
  JsonWriter& value(bool flag) { return token(flag ? "true" : "false"); }
  JsonWriter& value(double number);
  JsonWriter& value(int32_t number) { return value(int64_t{number}); }
  JsonWriter& value(int64_t number);
  JsonWriter& value(uint64_t number);
  JsonWriter& value(std::string_view text) { return token(json_quoted(text)); }
  JsonWriter& value(const char* text) { return value(std::string_view(text)); }

  const std::string& text() const { return text_; }

 private:
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);
  JsonWriter& token(std::string_view token);
  void separate();

  std::string text_;
  bool first_ = true;  // nothing yet in the innermost container, or right after a key
};

}  // namespace moe
