// A file that appears under its name complete, or not at all.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "moe/status.h"

namespace moe {

// Movable; for one thread. Written beside its final name, then synced and renamed over it: whoever
// looks, also after a crash, sees the old file or the new one.
class NewFile {
 public:
  static Result<NewFile> create(std::string path);
  NewFile(NewFile&& other) noexcept;
  NewFile& operator=(NewFile&&) = delete;
  ~NewFile();  // without commit() nothing remains

  // Appends. After a failure only destruction makes sense.
  Status write(const void* data, size_t bytes);
  Status write(std::string_view text) { return write(text.data(), text.size()); }

  // At most once, last.
  Status commit();

 private:
  NewFile(std::string path, std::string temporary, int descriptor);

  std::string path_, temporary_;
  int descriptor_;  // -1 once committed or moved from
};

}  // namespace moe
