#include "json.h"

#include <cstdio>

namespace moe::cli {

std::string Json::quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += {'\\', c};
    else if (static_cast<unsigned char>(c) < 0x20)
      out += fmt::format("\\u{:04x}", c);
    else
      out += c;
  }
  return out + '"';
}

void Json::begin(std::string_view key) {
  if (!first_) text_ += ", ";
  first_ = false;
  if (!key.empty()) text_ += quoted(key) + ": ";
}

Json& Json::open(std::string_view key, char bracket, char closing) {
  begin(key);
  text_ += bracket;
  closing_ += closing;
  first_ = true;
  return *this;
}

Json& Json::end() {
  text_ += closing_.back();
  closing_.pop_back();
  first_ = false;
  return *this;
}

void Json::print() {
  while (!closing_.empty()) end();
  fmt::print("{}\n", text_);
}

}  // namespace moe::cli
