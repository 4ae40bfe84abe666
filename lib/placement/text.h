// Cutting text, for the readers of usage files.
#pragma once

#include <string_view>
#include <vector>

namespace moe::placement {

inline std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

// Calls body(piece) for each piece between separators, until it returns false.
template <class Body>
void for_each_piece(std::string_view text, char separator, Body body) {
  while (true) {
    const size_t end = text.find(separator);
    if (!body(text.substr(0, end)) || end == std::string_view::npos) return;
    text.remove_prefix(end + 1);
  }
}

inline std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> pieces;
  for_each_piece(text, separator, [&](std::string_view piece) {
    pieces.push_back(trimmed(piece));
    return true;
  });
  return pieces;
}

}  // namespace moe::placement
