#include "core/new_file.h"

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "core/error.h"
#include "core/file.h"

namespace moe {
namespace {

// Makes a rename in `path`'s directory durable. Some file systems cannot sync directories (EINVAL);
// there is nothing more to be done then.
Status sync_directory_of(const std::string& path, FileCalls& calls) {
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return errno_status(errno, "open", directory);
  const int failed = calls.sync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  return failed == 0 || failed == EINVAL ? Status() : errno_status(failed, "sync", directory);
}

}  // namespace

ssize_t FileCalls::write(int descriptor, const void* data, size_t bytes) {
  return ::write(descriptor, data, bytes);
}
int FileCalls::sync(int descriptor) { return ::fsync(descriptor); }
int FileCalls::rename(const char* from, const char* to) { return ::rename(from, to); }

NewFile::NewFile(std::string path, std::string temporary, int descriptor, FileCalls& calls)
    : calls_(&calls),
      path_(std::move(path)),
      temporary_(std::move(temporary)),
      descriptor_(descriptor) {}

NewFile::NewFile(NewFile&& other) noexcept
    : calls_(other.calls_),
      path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

NewFile::~NewFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

Result<NewFile> NewFile::create(std::string path, FileCalls* calls) {
  static FileCalls system;
  static std::atomic<uint64_t> counter{0};
  for (;;) {
    std::string temporary = fmt::format("{}.{}-{}.part", path, ::getpid(), ++counter);
    const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor >= 0)
      return NewFile(std::move(path), std::move(temporary), descriptor, calls ? *calls : system);
    if (errno != EEXIST) return errno_status(errno, "create", temporary);
  }
}

Status NewFile::write(const void* data, size_t bytes) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t put = calls_->write(descriptor_, from, bytes);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return errno_status(errno, "write", path_);
    from += put;
    bytes -= static_cast<size_t>(put);
  }
  return {};
}

Status NewFile::commit() {
  if (calls_->sync(descriptor_) != 0) return errno_status(errno, "sync", path_);
  if (calls_->rename(temporary_.c_str(), path_.c_str()) != 0)
    return errno_status(errno, "rename", path_);
  // The bytes are synced: nothing that close() could still say matters.
  ::close(std::exchange(descriptor_, -1));
  return sync_directory_of(path_, *calls_);
}

}  // namespace moe
