// A synthetic model on disk: shards, index, and config.json last, so that a directory that was left
// half written is no checkpoint.
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <system_error>

#include <fmt/format.h>

#include "checkpoint/synthetic_model.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "moe/checkpoint.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPiece = int64_t{4} << 20;

// A file that appears under its name when commit() is called, and not at all otherwise.
class NewFile {
 public:
  static Result<NewFile> create(fs::path path) {
    NewFile file;
    file.path_ = std::move(path);
    file.file_.reset(std::fopen(file.temporary().c_str(), "wb"));
    if (!file.file_) return errno_status(errno, "create", file.temporary().string());
    return file;
  }
  NewFile(NewFile&&) = default;
  ~NewFile() {
    if (!file_) return;
    file_.reset();
    std::error_code ignored;
    fs::remove(temporary(), ignored);
  }

  Status write(const void* data, size_t bytes) {
    if (std::fwrite(data, 1, bytes, file_.get()) == bytes) return {};
    return errno_status(errno, "write", temporary().string());
  }
  Status write(std::string_view text) { return write(text.data(), text.size()); }

  Status commit() {
    if (std::fflush(file_.get()) != 0) return errno_status(errno, "write", temporary().string());
    std::error_code failed;
    fs::rename(temporary(), path_, failed);
    if (failed) return errno_status(failed.value(), "rename", temporary().string());
    file_.reset();
    return {};
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  NewFile() = default;
  fs::path temporary() const { return path_.string() + ".part"; }

  fs::path path_;
  std::unique_ptr<std::FILE, Close> file_;
};

Status write_text(const fs::path& path, std::string_view text) {
  MOE_ASSIGN_OR_RETURN(NewFile file, NewFile::create(path));
  MOE_RETURN_IF_ERROR(file.write(text));
  return file.commit();
}

struct Shard {
  size_t first = 0, last = 0;  // tensors [first, last)
  std::string name;
};

std::vector<Shard> cut(const std::vector<SyntheticTensor>& tensors, int64_t shard_bytes) {
  std::vector<Shard> shards;
  int64_t bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (shards.empty() || (bytes > 0 && bytes + tensors[i].bytes() > shard_bytes)) {
      shards.push_back({i, i, {}});
      bytes = 0;
    }
    bytes += tensors[i].bytes();
    shards.back().last = i + 1;
  }
  for (size_t i = 0; i < shards.size(); ++i)
    shards[i].name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  if (shards.size() == 1) shards[0].name = "model.safetensors";
  return shards;
}

class Writer {
 public:
  Writer(const SyntheticModel& model, fs::path directory, Progress progress, void* argument)
      : model_(model),
        directory_(std::move(directory)),
        progress_(progress),
        argument_(argument),
        tensors_(synthetic_tensors(model)),
        shards_(cut(tensors_, model.spec.shard_bytes)) {
    for (const SyntheticTensor& tensor : tensors_) total_ += tensor.bytes();
  }

  // Removes what it wrote if it fails.
  Status write() {
    MOE_RETURN_IF_ERROR(check_space());
    Status status = write_all();
    if (status.ok()) return status;
    std::error_code ignored;
    for (const fs::path& path : written_) fs::remove(path, ignored);
    return status;
  }

 private:
  Status check_space() const {
    std::error_code failed;
    const fs::space_info space = fs::space(directory_, failed);
    if (failed || space.available >= static_cast<uint64_t>(total_)) return {};
    return error(StatusCode::resource_exhausted, {.file = directory_.native()},
                 "{} has {} bytes free, but the model needs {}", directory_.string(),
                 space.available, total_);
  }

  Status write_all() {
    for (const Shard& shard : shards_) {
      MOE_RETURN_IF_ERROR(write_shard(shard));
      written_.push_back(directory_ / shard.name);
    }
    if (shards_.size() > 1) {
      MOE_RETURN_IF_ERROR(write_text(directory_ / "model.safetensors.index.json", index()));
      written_.push_back(directory_ / "model.safetensors.index.json");
    }
    return write_text(directory_ / "config.json", model_.config);
  }

  Status write_shard(const Shard& shard) {
    MOE_ASSIGN_OR_RETURN(NewFile file, NewFile::create(directory_ / shard.name));
    const std::string header = this->header(shard);
    char length[8];
    for (int byte = 0; byte < 8; ++byte)
      length[byte] = static_cast<char>(header.size() >> 8 * byte);
    MOE_RETURN_IF_ERROR(file.write(length, sizeof length));
    MOE_RETURN_IF_ERROR(file.write(header));
    for (size_t i = shard.first; i < shard.last; ++i)
      MOE_RETURN_IF_ERROR(write_tensor(tensors_[i], &file));
    return file.commit();
  }

  Status write_tensor(const SyntheticTensor& tensor, NewFile* file) {
    const int64_t size = bits_of(tensor.dtype) / 8;
    const int64_t elements = tensor.shape.elements();
    piece_.resize(static_cast<size_t>(kPiece / 8));
    for (int64_t first = 0; first < elements; first += kPiece / size) {
      const int64_t count = std::min(kPiece / size, elements - first);
      fill_synthetic(tensor, first, count, piece_.data());
      MOE_RETURN_IF_ERROR(file->write(piece_.data(), static_cast<size_t>(count * size)));
      done_ += count * size;
      if (progress_ && !progress_(argument_, done_, total_))
        return Status(StatusCode::cancelled, "writing a synthetic model was cancelled");
    }
    return {};
  }

  std::string header(const Shard& shard) const {
    JsonWriter json;
    json.begin_object();
    json.key("__metadata__").begin_object().key("format").value("pt").end_object();
    int64_t offset = 0;
    for (size_t i = shard.first; i < shard.last; ++i) {
      const SyntheticTensor& tensor = tensors_[i];
      json.key(tensor.name).begin_object();
      json.key("dtype").value(to_safetensors(tensor.dtype));
      json.key("shape").begin_array();
      for (int axis = 0; axis < tensor.shape.rank; ++axis) json.value(tensor.shape[axis]);
      json.end_array().key("data_offsets").begin_array();
      json.value(offset).value(offset + tensor.bytes()).end_array().end_object();
      offset += tensor.bytes();
    }
    json.end_object();
    std::string text = json.text();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return text;
  }

  std::string index() const {
    JsonWriter json;
    json.begin_object();
    json.key("metadata").begin_object().key("total_size").value(total_).end_object();
    json.key("weight_map").begin_object();
    for (const Shard& shard : shards_)
      for (size_t i = shard.first; i < shard.last; ++i)
        json.key(tensors_[i].name).value(shard.name);
    json.end_object().end_object();
    return json.text();
  }

  const SyntheticModel& model_;
  const fs::path directory_;
  const Progress progress_;
  void* const argument_;
  const std::vector<SyntheticTensor> tensors_;
  const std::vector<Shard> shards_;
  std::vector<fs::path> written_;
  std::vector<uint64_t> piece_;
  int64_t done_ = 0, total_ = 0;
};

}  // namespace

Status write_synthetic(const SyntheticSpec& spec, std::string_view directory, Progress progress,
                       void* argument) {
  const Place place{.file = directory};
  return guarded(place, [&]() -> Status {
    MOE_ASSIGN_OR_RETURN(const SyntheticModel model, synthetic_model(spec));
    const fs::path path(directory);
    std::error_code failed;
    fs::create_directories(path, failed);
    if (failed) return errno_status(failed.value(), "create", directory);
    if (fs::exists(path / "config.json", failed))
      return error(StatusCode::already_exists, place,
                   "{} holds a config.json already; choose an empty directory", directory);
    return Writer(model, path, progress, argument).write();
  });
}

}  // namespace moe
