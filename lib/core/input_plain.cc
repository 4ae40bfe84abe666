// Plain files only: this build has no zlib.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/input_file.h"

namespace moe {
namespace {

class PlainFile final : public InputFile {
 public:
  PlainFile(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}
  ~PlainFile() override { std::fclose(file_); }
  PlainFile(const PlainFile&) = delete;
  PlainFile& operator=(const PlainFile&) = delete;

  Result<size_t> read(char* out, size_t size) override {
    const size_t got = std::fread(out, 1, size, file_);
    if (std::ferror(file_))
      return error(StatusCode::data_loss, {.file = path_}, "cannot read: {}", std::strerror(errno));
    if (first_ && got >= 2 && out[0] == '\x1f' && out[1] == '\x8b')
      return error(StatusCode::unimplemented, {.file = path_},
                   "the file is packed by gzip and this build has no zlib: gunzip it first");
    first_ = false;
    return got;
  }

 private:
  std::string path_;
  std::FILE* file_;
  bool first_ = true;
};

}  // namespace

Result<std::unique_ptr<InputFile>> open_input(std::string_view path) {
  std::string name(path);
  std::FILE* file = std::fopen(name.c_str(), "rb");
  if (!file)
    return error(StatusCode::not_found, {.file = name}, "cannot open: {}", std::strerror(errno));
  auto input = std::make_unique<PlainFile>(std::move(name), file);
  return std::unique_ptr<InputFile>(std::move(input));
}

}  // namespace moe
