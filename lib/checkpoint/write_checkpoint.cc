#include "checkpoint/write_checkpoint.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <filesystem>
#include <utility>

#include <fcntl.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "checkpoint/shards.h"
#include "checkpoint/write_safetensors.h"
#include "core/error.h"
#include "core/json.h"
#include "core/new_file.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kShardBytes = uint64_t{5} << 30;
constexpr uint64_t kPiece = uint64_t{4} << 20;

struct Shard {
  std::vector<NewTensor> tensors;
  std::string name;
};

// Where a run may begin, in bytes.
uint64_t alignment(const TensorRun& run) {
  return run[0].digests > 0 ? kBlock : std::max<uint64_t>(1, bits_of(run[0].dtype) / 8);
}

// Shards of about kShardBytes, runs aligned by pads.
std::vector<Shard> cut(std::vector<TensorRun> runs, const TensorDirectory& files) {
  std::vector<Shard> shards;
  uint64_t bytes = 0;
  int64_t pads = 0;
  for (TensorRun& run : runs) {
    std::stable_sort(run.begin(), run.end(), [](const NewTensor& a, const NewTensor& b) {
      return bits_of(a.dtype) > bits_of(b.dtype);
    });
    uint64_t size = 0;
    for (const NewTensor& placed : run) size += placed.bytes;
    if (shards.empty() || (bytes > 0 && bytes + size > kShardBytes)) {
      shards.emplace_back();
      bytes = 0;
    }
    auto& tensors = shards.back().tensors;
    const uint64_t step = alignment(run);
    if (const uint64_t pad = (step - bytes % step) % step; pad > 0) {
      std::string name;
      do name = fmt::format("moe.pad.{}", pads++);
      while (files.find(name));
      tensors.push_back({name, DType::u8, {static_cast<int64_t>(pad)}, pad});
      bytes += pad;
    }
    tensors.insert(tensors.end(), run.begin(), run.end());
    bytes += size;
  }
  for (size_t i = 0; i < shards.size(); ++i) shards[i].name = shard_name(i, shards.size());
  return shards;
}

// Writes into a folder beside the final one.
class Writer {
 public:
  Writer(const NewCheckpoint& made, fs::path folder, Progress progress, void* argument)
      : made_(made),
        from_(made.from),
        folder_(std::move(folder)),
        progress_(progress),
        argument_(argument) {}

  Status write() {
    const std::vector<Shard> shards = cut(made_.runs, from_.files);
    for (const Shard& shard : shards)
      for (const NewTensor& placed : shard.tensors) total_ += static_cast<int64_t>(placed.bytes);
    MOE_RETURN_IF_ERROR(check_space(folder_, total_));
    manifest_.begin_object().key("schema_version").value(1);
    manifest_.key("xxh3").begin_object();
    for (const Shard& shard : shards) MOE_RETURN_IF_ERROR(write_shard(shard));
    manifest_.end_object().end_object();
    MOE_RETURN_IF_ERROR(write_file(kManifestName, manifest_.text()));
    if (shards.size() > 1)
      MOE_RETURN_IF_ERROR(write_file("model.safetensors.index.json", index(shards, total_)));
    return copy_others();
  }

 private:
  Status write_shard(const Shard& shard) {
    std::vector<SafetensorsEntry> entries;
    for (const NewTensor& placed : shard.tensors)
      entries.push_back({placed.name, placed.dtype, placed.shape});
    MOE_ASSIGN_OR_RETURN(const std::string head, safetensors_head(entries, "pt", kBlock));
    MOE_ASSIGN_OR_RETURN(NewFile file,
                         NewFile::create((folder_ / shard.name).string(), made_.calls));
    MOE_RETURN_IF_ERROR(file.write(head));
    for (const NewTensor& placed : shard.tensors) MOE_RETURN_IF_ERROR(write_tensor(placed, &file));
    return file.commit();
  }

  Status write_tensor(const NewTensor& placed, NewFile* file) {
    if (placed.key >= 0) {
      MOE_RETURN_IF_ERROR(made_.make(placed, &bytes_));
      assert(bytes_.size() == placed.bytes);
    }
    const uint64_t part = placed.digests > 0 ? placed.bytes / placed.digests : placed.bytes;
    std::string digests;
    for (uint64_t at = 0; at < placed.bytes; at += part) {
      MOE_ASSIGN_OR_RETURN(const uint64_t digest, copy_part(placed, at, part, file));
      fmt::format_to(std::back_inserter(digests), "{}{:016x}", at ? " " : "", digest);
    }
    if (placed.digests > 0 && placed.bytes > 0) manifest_.key(placed.name).value(digests);
    return {};
  }

  // Copies bytes [at, at + part) and returns their digest.
  Result<uint64_t> copy_part(const NewTensor& placed, uint64_t at, uint64_t part, NewFile* file) {
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    for (uint64_t done = 0; done < part; done += kPiece) {
      const uint64_t count = std::min(kPiece, part - done);
      piece_.assign(count, '\0');
      if (placed.copied)
        MOE_RETURN_IF_ERROR(from_.files.read(*placed.copied, at + done, count, piece_.data()));
      else if (placed.key >= 0)
        std::memcpy(piece_.data(), bytes_.data() + at + done, count);
      XXH3_64bits_update(&state, piece_.data(), count);
      MOE_RETURN_IF_ERROR(file->write(piece_));
      done_ += static_cast<int64_t>(count);
      if (progress_ && !progress_(argument_, done_, total_))
        return error(StatusCode::cancelled, {}, "{} was cancelled", made_.what);
    }
    return XXH3_64bits_digest(&state);
  }

  static std::string index(const std::vector<Shard>& shards, int64_t bytes) {
    std::vector<PlacedName> names;
    for (const Shard& shard : shards)
      for (const NewTensor& placed : shard.tensors) names.emplace_back(placed.name, shard.name);
    return shard_index(bytes, names);
  }

  Status write_file(std::string_view name, std::string_view text) const {
    return write_text(folder_ / name, text, made_.calls);
  }

  // config.json, tokenizers and whatever else there is but weights.
  Status copy_others() const {
    std::error_code failed;
    for (fs::directory_iterator entry(from_.directory, failed), end; !failed && entry != end;
         entry.increment(failed)) {
      const std::string name = entry->path().filename().string();
      if (!entry->is_regular_file() || name.ends_with(".safetensors") ||
          name.ends_with(".safetensors.index.json") || name == kManifestName ||
          std::find(made_.dropped.begin(), made_.dropped.end(), name) != made_.dropped.end())
        continue;
      if (name == "config.json" && !made_.config.empty()) {
        MOE_RETURN_IF_ERROR(write_file(name, made_.config));
        continue;
      }
      MOE_ASSIGN_OR_RETURN(const std::string text,
                           read_text_file(entry->path().string(), uint64_t{1} << 30));
      MOE_RETURN_IF_ERROR(write_file(name, text));
    }
    return failed ? errno_status(failed.value(), "list", from_.directory) : Status();
  }

  const NewCheckpoint& made_;
  const Checkpoint::Impl& from_;
  const fs::path folder_;
  const Progress progress_;
  void* const argument_;
  JsonWriter manifest_;
  std::string piece_, bytes_;
  int64_t done_ = 0, total_ = 0;
};

Status check_folders(const fs::path& from, const fs::path& to) {
  std::error_code unknown;
  if (fs::symlink_status(to, unknown).type() != fs::file_type::not_found)
    return error(StatusCode::already_exists, {.file = to.native()},
                 "{} exists already; choose a new folder", to.string());
  const fs::path inside = fs::weakly_canonical(from, unknown);
  for (fs::path at = fs::weakly_canonical(to, unknown); at.has_relative_path();
       at = at.parent_path())
    if (at == inside)
      return invalid_argument({.file = to.native()},
                              "{} lies in {}, into which nothing is ever written; choose a folder "
                              "elsewhere",
                              to.string(), from.string());
  return {};
}

// Makes the rename of `folder` durable.
void sync_parent(const fs::path& folder) {
  const fs::path parent = folder.has_parent_path() ? folder.parent_path() : fs::path(".");
  const int descriptor = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  (void)::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace

Status write_checkpoint(const NewCheckpoint& made, std::string_view to, Progress progress,
                        void* argument) {
  while (to.size() > 1 && to.ends_with('/')) to.remove_suffix(1);
  const fs::path folder(to), partial(fmt::format("{}.{}.part", to, ::getpid()));
  MOE_RETURN_IF_ERROR(check_folders(fs::path(made.from.directory), folder));
  std::error_code failed;
  fs::create_directories(partial, failed);
  if (failed) return errno_status(failed.value(), "create", partial.string());
  FileCalls system;
  FileCalls& calls = made.calls ? *made.calls : system;
  Status status =
      guarded({.file = to}, [&] { return Writer(made, partial, progress, argument).write(); });
  if (status.ok() && calls.rename(partial.c_str(), folder.c_str()) != 0)
    status = errno_status(errno, "rename", partial.string());
  if (status.ok())
    sync_parent(folder);
  else
    fs::remove_all(partial, failed);
  return status;
}

}  // namespace moe
