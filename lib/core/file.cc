#include "core/file.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <mutex>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"

namespace moe {
namespace {

class Descriptor {
 public:
  // O_NONBLOCK: opening a FIFO must not wait for its writer. It does nothing to regular files.
  explicit Descriptor(const char* path, int flags = 0)
      : fd_(::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags)) {}
  Descriptor() = default;
  Descriptor& operator=(Descriptor&& other) noexcept {
    close();
    fd_ = std::exchange(other.fd_, -1);
    return *this;
  }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~Descriptor() { close(); }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  int get() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

struct Identity {
  uint64_t device = 0, inode = 0, size = 0;
  int64_t seconds = 0, nanoseconds = 0;

  explicit Identity(const struct stat& s)
      : device(s.st_dev),
        inode(s.st_ino),
        size(static_cast<uint64_t>(s.st_size)),
        seconds(s.st_mtim.tv_sec),
        nanoseconds(s.st_mtim.tv_nsec) {}
  friend bool operator==(const Identity&, const Identity&) = default;
};

class PosixFile final : public File {
 public:
  PosixFile(std::string path, Descriptor descriptor, const Identity& identity)
      : path_(std::move(path)), descriptor_(std::move(descriptor)), identity_(identity) {}

  std::string_view path() const noexcept override { return path_; }
  uint64_t size() const noexcept override { return identity_.size; }

  int64_t pread(void* out, size_t bytes, uint64_t offset) const noexcept override {
    if (descriptor_.is_open()) return pread(descriptor_, out, bytes, offset);
    const Descriptor once(path_.c_str());
    if (!once.is_open()) return -errno;
    struct stat now;
    if (::fstat(once.get(), &now) != 0) return -errno;
    return Identity(now) == identity_ ? pread(once, out, bytes, offset) : -ESTALE;
  }

  int descriptor(bool direct) const noexcept override {
    if (!direct || !descriptor_.is_open()) return descriptor_.get();
    std::call_once(direct_once_, [this] { open_direct(); });
    return direct_.get();
  }

  Status check_unchanged() const override {
    struct stat s;
    const int failed =
        descriptor_.is_open() ? ::fstat(descriptor_.get(), &s) : ::stat(path_.c_str(), &s);
    if (failed) return errno_status(errno, "look at", path_);
    const Identity now(s);
    if (now == identity_) return {};
    if (now.size < identity_.size)
      return error(
          StatusCode::data_loss, {.file = path_},
          "{}: the file had {} bytes when it was opened and has {} now; restore it and open "
          "the checkpoint again",
          path_, identity_.size, now.size);
    return error(
        StatusCode::failed_precondition, {.file = path_},
        "{}: the file was changed or replaced while in use ({} bytes when opened, {} now); "
        "open the checkpoint again, and replace files only by renaming new ones over them",
        path_, identity_.size, now.size);
  }

 private:
  static int64_t pread(const Descriptor& from, void* out, size_t bytes, uint64_t offset) noexcept {
    const ssize_t got = ::pread(from.get(), out, bytes, static_cast<off_t>(offset));
    return got < 0 ? -errno : got;
  }

  // By way of /proc: the very file that is open, whoever has taken its name meanwhile.
  void open_direct() const noexcept {
    char link[32];
    std::snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor_.get());
    direct_ = Descriptor(link, O_DIRECT);
  }

  std::string path_;
  Descriptor descriptor_;  // closed in mode open_per_read
  mutable std::once_flag direct_once_;
  mutable Descriptor direct_;  // opened when first asked for; closed where O_DIRECT is refused
  Identity identity_;
};

}  // namespace

Status errno_status(int number, std::string_view what, std::string_view path) {
  StatusCode code = StatusCode::unavailable;
  std::string_view next = "check the disk or mount, then try again";
  switch (number) {
    case ENOENT:
    case ENOTDIR: code = StatusCode::not_found, next = "check the path"; break;
    case EACCES:
    case EPERM: code = StatusCode::permission_denied, next = "check the permissions"; break;
    case EMFILE:
    case ENFILE: code = StatusCode::resource_exhausted, next = "raise the limit (ulimit -n)"; break;
    case ENOSPC:
    case EFBIG:
    case EDQUOT:
      code = StatusCode::resource_exhausted,
      next = "free some space, or raise the quota or file size limit";
      break;
    case ELOOP:
    case ENAMETOOLONG:
    case EISDIR:
    case EINVAL: code = StatusCode::invalid_argument, next = "check the path"; break;
  }
  return error(code, {.file = path}, "{}: cannot {}: {}; {}", path, what,
               std::generic_category().message(number), next);
}

Result<std::unique_ptr<File>> open_file(const std::string& path, FileMode mode) {
  Descriptor descriptor(path.c_str());
  if (!descriptor.is_open()) return errno_status(errno, "open", path);
  struct stat s;
  if (::fstat(descriptor.get(), &s) != 0) return errno_status(errno, "look at", path);
  if (!S_ISREG(s.st_mode))
    return invalid_argument({.file = path}, "{}: not a regular file; pass the path of one", path);
  if (mode == FileMode::open_per_read) descriptor.close();
  return std::unique_ptr<File>(
      std::make_unique<PosixFile>(path, std::move(descriptor), Identity(s)));
}

Status read_exactly(const File& file, uint64_t offset, uint64_t bytes, void* out) {
  constexpr uint64_t kMostAtOnce = 1u << 30;  // Linux reads at most 2 GiB - 4 KiB a call
  auto* to = static_cast<char*>(out);
  for (uint64_t done = 0; done < bytes;) {
    const auto ask = static_cast<size_t>(std::min(bytes - done, kMostAtOnce));
    const int64_t got = file.pread(to + done, ask, offset + done);
    if (got == -EINTR) continue;
    if (got <= 0) MOE_RETURN_IF_ERROR(file.check_unchanged());
    if (got < 0) return errno_status(static_cast<int>(-got), "read", file.path());
    if (got == 0)
      return error(
          StatusCode::data_loss, {.file = file.path()},
          "{}: bytes [{}, {}) were asked for but the file ends at {} (truncated?); restore "
          "it and open the checkpoint again",
          file.path(), offset, offset + bytes, offset + done);
    done += static_cast<uint64_t>(got);
  }
  return file.check_unchanged();
}

Result<std::string> read_text_file(const std::string& path, uint64_t max_bytes) {
  MOE_ASSIGN_OR_RETURN(const auto file, open_file(path, FileMode::stay_open));
  if (file->size() > max_bytes)
    return invalid_argument({.file = path},
                            "{}: {} bytes where at most {} are expected; is this the "
                            "right file?",
                            path, file->size(), max_bytes);
  std::string text(file->size(), '\0');
  MOE_RETURN_IF_ERROR(read_exactly(*file, 0, text.size(), text.data()));
  return text;
}

}  // namespace moe
