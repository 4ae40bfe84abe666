#include "checkpoint/tensor_directory.h"

#include <algorithm>
#include <utility>

#include "checkpoint/shard_list.h"
#include "core/error.h"
#include "core/json.h"
#include "core/nearest.h"

namespace moe {

// Opens the files of a shard list one after the other, and holds their tensors against the index.
class TensorDirectoryBuilder {
 public:
  TensorDirectoryBuilder(const std::string& path, const OpenFile& open_file)
      : open_file_(open_file) {
    directory_.path_ = path;
  }

  Result<TensorDirectory> build(const ShardList& list, const Notes& notes) {
    MOE_RETURN_IF_ERROR(open_shards(list.files));
    MOE_RETURN_IF_ERROR(index_names());
    if (list.index) MOE_RETURN_IF_ERROR(check_index(*list.index, notes));
    return std::move(directory_);
  }

 private:
  // So many shards stay open; a host's descriptors are not ours to spend.
  static constexpr size_t kMostOpen = 256;

  Status open_shards(const std::vector<std::string>& names) {
    directory_.shards_.reserve(names.size());
    for (const std::string& name : names) {
      auto shard = std::make_unique<TensorDirectory::Shard>();
      shard->name = name;
      const auto mode =
          directory_.shards_.size() < kMostOpen ? FileMode::stay_open : FileMode::open_per_read;
      MOE_ASSIGN_OR_RETURN(shard->file, open_file_(directory_.path_ + "/" + name, mode));
      MOE_ASSIGN_OR_RETURN(SafetensorsHeader header,
                           read_safetensors_header(*shard->file, shard->name));
      shard->header = std::move(header.json);
      auto& all = directory_.tensors_;
      all.insert(all.end(), header.tensors.begin(), header.tensors.end());
      directory_.shards_.push_back(std::move(shard));
    }
    return {};
  }

  Status index_names() {
    auto& tensors = directory_.tensors_;
    const auto by_name = [](const auto& a, const auto& b) { return a.name < b.name; };
    if (!std::is_sorted(tensors.begin(), tensors.end(), by_name))
      std::sort(tensors.begin(), tensors.end(), by_name);
    directory_.by_name_.reserve(tensors.size());
    for (const Checkpoint::Tensor& tensor : tensors) {
      const auto [other, fresh] = directory_.by_name_.emplace(tensor.name, &tensor);
      if (!fresh)
        return refuse(tensor, "it is in two files, {} and {}; keep the one that belongs to it",
                      other->second->file, tensor.file);
      directory_.bytes_ += tensor.bytes;
    }
    return {};
  }

  Status check_index(const ShardIndex& index, const Notes& notes) {
    NameList missing;
    for (const auto& [name, file] : index.weight_map) {
      const Checkpoint::Tensor* tensor = directory_.find(name);
      if (tensor && tensor->file == file) continue;
      missing.add(tensor ? fmt::format("{} (in {}, not in {})", name, tensor->file, file)
                         : fmt::format("{} (not in {})", name, file));
    }
    if (!missing.empty())
      return invalid_argument(
          {.file = index.path, .phase = Phase::open},
          "{}: {} tensors are not where the index says: {}; fetch the index and the shards again",
          index.path, missing.count(), missing.text());
    if (const size_t extra = directory_.tensors_.size() - index.weight_map.size(); extra > 0)
      notes.info("{}: {} tensors are in the shards but not in the index; they are kept", index.path,
                 extra);
    if (index.total_size && static_cast<uint64_t>(*index.total_size) != directory_.bytes_)
      notes.info("{}: total_size is {} but the tensors have {} bytes", index.path,
                 *index.total_size, directory_.bytes_);
    return {};
  }

  template <class... Args>
  Status refuse(const Checkpoint::Tensor& tensor, fmt::format_string<Args...> format,
                Args&&... args) {
    const std::string file = directory_.path_ + "/" + std::string(tensor.file);
    return invalid_argument({.file = file, .tensor = tensor.name, .phase = Phase::open},
                            "{}: tensor {}: {}", file, json_quoted(tensor.name),
                            fmt::format(format, std::forward<Args>(args)...));
  }

  const OpenFile& open_file_;
  TensorDirectory directory_;
};

Result<TensorDirectory> TensorDirectory::open(std::string_view directory, LogSink* log,
                                              const OpenFile& open_file) {
  const Place place{.file = directory, .phase = Phase::open};
  return guarded(place, [&]() -> Result<TensorDirectory> {
    const std::string path(directory);
    const Notes notes(log);
    MOE_ASSIGN_OR_RETURN(const ShardList list, list_shards(path, notes));
    return TensorDirectoryBuilder(path, open_file).build(list, notes);
  });
}

const Checkpoint::Tensor* TensorDirectory::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

Status TensorDirectory::not_found(std::string_view name) const {
  const Place place{.file = path_, .tensor = name};
  NearestName nearest(name);
  for (const Tensor& tensor : tensors_) nearest.offer(tensor.name);
  return error(StatusCode::not_found, place, "{}: no tensor {} among {}{}", path_,
               json_quoted(name), tensors_.size(), nearest.suggestion());
}

Result<FileRange> TensorDirectory::locate(const Tensor& tensor, uint64_t byte_offset,
                                          uint64_t bytes) const {
  const Place place{.file = tensor.file, .tensor = tensor.name};
  if (byte_offset > tensor.bytes || bytes > tensor.bytes - byte_offset)
    return error(StatusCode::out_of_range, place,
                 "{}: tensor {}: {} bytes from {} were asked for but it has {}", tensor.file,
                 json_quoted(tensor.name), bytes, byte_offset, tensor.bytes);
  const auto shard =
      std::lower_bound(shards_.begin(), shards_.end(), tensor.file,
                       [](const auto& shard, std::string_view name) { return shard->name < name; });
  if (shard == shards_.end() || (*shard)->name != tensor.file)
    return invalid_argument(place, "{}: \"{}\" is not one of its files; pass a tensor of tensors()",
                            path_, tensor.file);
  return FileRange{(*shard)->file.get(), tensor.offset + byte_offset, bytes, tensor.name};
}

Status TensorDirectory::read(const Tensor& tensor, uint64_t byte_offset, uint64_t bytes,
                             void* out) const {
  MOE_ASSIGN_OR_RETURN(const FileRange range, locate(tensor, byte_offset, bytes));
  return read_exactly(*range.file, range.offset, range.bytes, out)
      .at({.file = tensor.file, .tensor = tensor.name});
}

}  // namespace moe
