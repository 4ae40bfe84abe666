// Plain or packed files, by zlib.
#include <cerrno>
#include <cstring>
#include <string>

#include <zlib.h>

#include "core/error.h"
#include "core/input_file.h"

namespace moe {
namespace {

class GzipFile final : public InputFile {
 public:
  GzipFile(std::string path, gzFile file) : path_(std::move(path)), file_(file) {}
  ~GzipFile() override { gzclose(file_); }
  GzipFile(const GzipFile&) = delete;
  GzipFile& operator=(const GzipFile&) = delete;

  Result<size_t> read(char* out, size_t size) override {
    const int got = gzread(file_, out, static_cast<unsigned>(size));
    int code = Z_OK;
    const char* message = gzerror(file_, &code);
    // A packed file that ends early reads like a short one; only the error code tells.
    if (got < 0 || code == Z_BUF_ERROR)
      return error(StatusCode::data_loss, {.file = path_}, "cannot read: {}",
                   code == Z_ERRNO ? std::strerror(errno) : message);
    return static_cast<size_t>(got);
  }

 private:
  std::string path_;
  gzFile file_;
};

}  // namespace

Result<std::unique_ptr<InputFile>> open_input(std::string_view path) {
  std::string name(path);
  errno = 0;
  const gzFile file = gzopen(name.c_str(), "rb");
  if (!file)
    return error(errno == 0 ? StatusCode::resource_exhausted : StatusCode::not_found,
                 {.file = name}, "cannot open: {}", std::strerror(errno == 0 ? ENOMEM : errno));
  auto input = std::make_unique<GzipFile>(std::move(name), file);
  return std::unique_ptr<InputFile>(std::move(input));
}

}  // namespace moe
