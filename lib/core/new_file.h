// A file that appears under its name complete, or not at all.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <sys/types.h>

#include "moe/status.h"

namespace moe {

// What a NewFile asks of the system, as write(2), fsync(2) and rename(2). Tests make calls fail.
class FileCalls {
 public:
  virtual ~FileCalls() = default;
  virtual ssize_t write(int descriptor, const void* data, size_t bytes);
  virtual int sync(int descriptor);
  virtual int rename(const char* from, const char* to);
};

// Movable; for one thread. Written beside its final name, then synced and renamed over it: whoever
// looks, also after a crash, sees the old file or the new one.
class NewFile {
 public:
  // `calls`, if given, must outlive the file.
  static Result<NewFile> create(std::string path, FileCalls* calls = nullptr);
  NewFile(NewFile&& other) noexcept;
  NewFile& operator=(NewFile&&) = delete;
  ~NewFile();  // without commit() nothing remains

  // Appends. After a failure only destruction makes sense.
  Status write(const void* data, size_t bytes);
  Status write(std::string_view text) { return write(text.data(), text.size()); }

  // At most once, last.
  Status commit();

 private:
  NewFile(std::string path, std::string temporary, int descriptor, FileCalls& calls);

  FileCalls* calls_;
  std::string path_, temporary_;
  int descriptor_;  // -1 once committed or moved from
};

}  // namespace moe
