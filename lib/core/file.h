// Files that are only read, at given offsets, never mapped: a truncated or overwritten file must
// end in a Status, not in SIGBUS or in other people's bytes. Tests bring their own File to make
// reads fail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "moe/status.h"

namespace moe {

inline constexpr uint64_t kDirectAlignment = 4096;  // of O_DIRECT on every usual disk

// Safe for concurrent use.
class File {
 public:
  virtual ~File() = default;

  virtual std::string_view path() const noexcept = 0;
  virtual uint64_t size() const noexcept = 0;  // when it was opened

  // As pread(2): bytes read, fewer than asked if need be, 0 at the end; or -errno.
  virtual int64_t pread(void* out, size_t bytes, uint64_t offset) const noexcept = 0;

  // For reads that the kernel does without pread(): a descriptor whose reads go past the page cache
  // if `direct` (then memory, offset and size are multiples of kDirectAlignment). -1: there is
  // none.
  virtual int descriptor([[maybe_unused]] bool direct) const noexcept { return -1; }

  // ok if device, inode, size and modification time are those of open(). Otherwise data_loss (the
  // file became shorter) or failed_precondition. Writes within one tick of the file system's clock
  // (a few ms) after open() go unnoticed.
  virtual Status check_unchanged() const = 0;
};

// stay_open costs a file descriptor, and keeps serving the old bytes when a new file is renamed
// over the old one. open_per_read serves any number of files, and refuses then.
enum class FileMode { stay_open, open_per_read };

using OpenFile = std::function<Result<std::unique_ptr<File>>(const std::string& path, FileMode)>;

// A regular file, or a symbolic link to one.
Result<std::unique_ptr<File>> open_file(const std::string& path, FileMode mode);

// All of [offset, offset + bytes), or a Status that names the file. Repeats short and interrupted
// reads, and checks afterwards that the file is still the one that was opened.
Status read_exactly(const File& file, uint64_t offset, uint64_t bytes, void* out);

// The whole of a small file; invalid_argument if it is larger than `max_bytes`.
Result<std::string> read_text_file(const std::string& path, uint64_t max_bytes = 64u << 20);

// The Status for `-errno` of doing `what` ("open", "read") with the file `path`.
Status errno_status(int error, std::string_view what, std::string_view path);

}  // namespace moe
