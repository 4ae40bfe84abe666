// Writes one JSON object, in order. Inside an object every value has a key, inside an array none.
#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <type_traits>

#include <fmt/format.h>

namespace moe::cli {

class Json {
 public:
  // Opens the outermost object. A field that changes its meaning or goes raises schema_version.
  Json() : text_("{") { value("schema_version", 1); }

  Json& object(std::string_view key = {}) { return open(key, '{', '}'); }
  Json& array(std::string_view key = {}) { return open(key, '[', ']'); }
  Json& end();  // of the innermost object or array

  template <class T>
  Json& value(std::string_view key, const T& v) {
    begin(key);
    if constexpr (std::is_same_v<T, bool>)
      text_ += v ? "true" : "false";
    else if constexpr (std::is_floating_point_v<T>)
      text_ += std::isfinite(v) ? fmt::format("{}", v) : "null";
    else if constexpr (std::is_arithmetic_v<T>)
      text_ += fmt::format("{}", v);
    else
      text_ += quoted(v);
    return *this;
  }
  template <class T>
  Json& element(const T& v) {
    return value({}, v);
  }

  // Closes what is open and prints all of it to stdout.
  void print();

 private:
  static std::string quoted(std::string_view text);
  void begin(std::string_view key);
  Json& open(std::string_view key, char bracket, char closing);

  std::string text_;
  std::string closing_ = "}";
  bool first_ = true;
};

}  // namespace moe::cli
