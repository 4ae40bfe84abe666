// Safetensors files spelled by hand, and a place to put them.
#pragma once

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

#include "catch.h"
#include "moe/host.h"
#include "moe/status.h"
#include "temporary_directory.h"

namespace moe::test {

inline void write_file(const std::string& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(file.flush());
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  REQUIRE(file);
  return content.str();
}

// Length, header as given, data.
inline std::string safetensors(std::string_view header, std::string_view data = {}) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i));
  return bytes.append(header).append(data);
}

// A file of one U8 tensor.
inline std::string one_tensor(const std::string& name, std::string_view data) {
  const std::string size = std::to_string(data.size());
  return safetensors("{\"" + name + "\":{\"dtype\":\"U8\",\"shape\":[" + size +
                         "],\"data_offsets\":[0," + size + "]}}",
                     data);
}

inline bool says(const Status& status, std::string_view part) {
  return status.message().find(part) != std::string_view::npos;
}

// Keeps what it is told.
class Notebook : public LogSink {
 public:
  void log(LogLevel, std::string_view message) noexcept override {
    text.append(message).append("\n");
  }
  std::string text;
};

}  // namespace moe::test
