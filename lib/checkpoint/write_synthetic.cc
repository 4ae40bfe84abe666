// A synthetic model on disk: shards, index, and config.json last, so that a directory that was left
// half written is no checkpoint.
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "checkpoint/shards.h"
#include "checkpoint/synthetic_model.h"
#include "checkpoint/write_safetensors.h"
#include "core/error.h"
#include "core/file.h"
#include "core/new_file.h"
#include "moe/checkpoint.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPiece = int64_t{4} << 20;

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
  for (size_t i = 0; i < shards.size(); ++i) shards[i].name = shard_name(i, shards.size());
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
    MOE_RETURN_IF_ERROR(check_space(directory_, total_));
    Status status = write_all();
    if (status.ok()) return status;
    std::error_code ignored;
    for (const fs::path& path : written_) fs::remove(path, ignored);
    return status;
  }

 private:
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
    MOE_ASSIGN_OR_RETURN(const std::string head, this->head(shard));
    MOE_ASSIGN_OR_RETURN(NewFile file, NewFile::create((directory_ / shard.name).string()));
    MOE_RETURN_IF_ERROR(file.write(head));
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

  Result<std::string> head(const Shard& shard) const {
    std::vector<SafetensorsEntry> entries;
    for (size_t i = shard.first; i < shard.last; ++i)
      entries.push_back({tensors_[i].name, tensors_[i].dtype, tensors_[i].shape});
    return safetensors_head(entries, "pt");
  }

  std::string index() const {
    std::vector<PlacedName> names;
    for (const Shard& shard : shards_)
      for (size_t i = shard.first; i < shard.last; ++i)
        names.emplace_back(tensors_[i].name, shard.name);
    return shard_index(total_, names);
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
