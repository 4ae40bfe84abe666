// Any bytes are a file. Whatever read_safetensors_header() accepts must be sound: JSON for a parser
// that checks the whole document, distinct names, and data that tiles the file. What it refuses, it
// explains.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include <simdjson.h>

#include "checkpoint/memory_file.h"
#include "checkpoint/safetensors.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check_sound(const std::string& bytes, const std::vector<moe::Checkpoint::Tensor>& tensors) {
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<uint8_t>(bytes[i]);
  uint64_t end = 8 + length;
  std::vector<std::string_view> names;
  for (const auto& tensor : tensors) {
    require(tensor.offset == end);
    end += tensor.bytes;
    if (tensor.shape.rank >= 0)
      require(static_cast<uint64_t>(tensor.shape.elements() * moe::bits_of(tensor.dtype)) / 8 ==
              tensor.bytes);
    require(simdjson::validate_utf8(tensor.name.data(), tensor.name.size()));
    names.push_back(tensor.name);
  }
  require(end == bytes.size());
  std::sort(names.begin(), names.end());
  require(std::adjacent_find(names.begin(), names.end()) == names.end());
  simdjson::dom::parser parser;
  require(parser.parse(bytes.data() + 8, length).error() == simdjson::SUCCESS);
}

void read(const std::string& bytes) {
  const moe::test::MemoryFile file(bytes);
  const auto header = moe::read_safetensors_header(file, "f");
  if (header.ok())
    check_sound(bytes, header->tensors);
  else
    require(header.status().message().find("]; ") != std::string_view::npos);
}

}  // namespace

// The bytes as they are, and with the length put right, so that damage to the JSON gets past it.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  read(bytes);
  const size_t brace = bytes.rfind('}');
  if (brace == std::string::npos || brace < 8) return 0;
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>((brace - 7) >> (8 * i));
  read(bytes);
  return 0;
}
