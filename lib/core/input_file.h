// Bytes of a file, from its beginning to its end; unpacked if the file is packed by gzip.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include "moe/status.h"

namespace moe {

class InputFile {
 public:
  virtual ~InputFile() = default;

  // Fills up to `size` bytes and returns how many; 0 at the end.
  virtual Result<size_t> read(char* out, size_t size) = 0;
};

// input_gzip.cc has zlib; input_plain.cc refuses packed files and says what to do.
Result<std::unique_ptr<InputFile>> open_input(std::string_view path);

}  // namespace moe
