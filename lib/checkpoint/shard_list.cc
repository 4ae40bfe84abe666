#include "checkpoint/shard_list.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <regex>
#include <set>

#include <dirent.h>
#include <sys/stat.h>

#include "core/file.h"
#include "core/json.h"

namespace moe {
namespace {

constexpr std::string_view kSuffix = ".safetensors";
constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

// What is in the directory; symbolic links are followed, as caches of downloads are made of them.
struct Listing {
  std::set<std::string, std::less<>> safetensors;
  std::set<std::string, std::less<>> others;
  bool has_index = false;
  std::string other_weights;  // a file of a format that we do not read, for the message
};

// By readdir(3): std::filesystem's iterators end the process where memory ends.
Result<Listing> list(const std::string& directory) {
  const Place place{.file = directory, .phase = Phase::open};
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::opendir(directory.c_str()), ::closedir);
  if (!entries && errno == ENOTDIR)
    return invalid_argument(place, "{}: not a directory; pass the one that holds config.json",
                            directory);
  if (!entries && errno == ENOENT)
    return error(StatusCode::not_found, place, "{}: there is no such directory; check the path",
                 directory);
  if (!entries) return errno_status(errno, "list", directory).at(place);
  Listing listing;
  errno = 0;
  while (const dirent* entry = ::readdir(entries.get())) {
    const std::string name = entry->d_name;
    struct stat unused;
    const bool exists = ::fstatat(::dirfd(entries.get()), entry->d_name, &unused, 0) == 0;
    errno = 0;
    if (!exists || name == "." || name == "..") continue;  // a link into the void
    if (name == kIndex)
      listing.has_index = true;
    else if (name.ends_with(kSuffix) && name[0] != '.')
      listing.safetensors.insert(name);
    else
      listing.others.insert(name);
    if (name.ends_with(".bin") || name.ends_with(".gguf") || name.ends_with(".pt") ||
        name.ends_with(".pth"))
      listing.other_weights = name;
  }
  if (errno != 0) return errno_status(errno, "list", directory).at(place);
  return listing;
}

bool is_bare_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

Result<ShardIndex> read_index(const std::string& path) {
  const Place place{.file = path, .phase = Phase::open};
  MOE_ASSIGN_OR_RETURN(const Json json, Json::read(path));
  const Json* weight_map = json.find("weight_map");
  if (!weight_map || !weight_map->is_object())
    return invalid_argument(place,
                            "{}: there is no object \"weight_map\" (tensor name to file name); "
                            "fetch the index again",
                            path);
  ShardIndex index{.path = path};
  index.weight_map.reserve(weight_map->members().size());
  for (const auto& [tensor, file] : weight_map->members()) {
    const auto name = file.string();
    const Place where{.file = path, .tensor = tensor, .phase = Phase::open};
    if (!name)
      return invalid_argument(where, "{}: tensor {}: its file is of kind {}; a string is expected",
                              path, json_quoted(tensor), to_string(file.kind()));
    if (!is_bare_file_name(*name))
      return invalid_argument(where,
                              "{}: tensor {}: its file is {}; only the name of a file in the same "
                              "directory is allowed",
                              path, json_quoted(tensor), json_quoted(*name));
    index.weight_map.emplace_back(tensor, *name);
  }
  if (const Json* metadata = json.find("metadata"))
    if (const Json* size = metadata->find("total_size")) index.total_size = size->integer();
  return index;
}

// "model-00002-of-00005.safetensors" belongs to the series {"model-", "-of-00005.safetensors"}.
struct Series {
  std::string prefix, suffix;
  int count = 0;
  int digits = 0;

  std::string name(int number) const {
    return fmt::format("{}{:0{}}{}", prefix, number, digits, suffix);
  }
};

std::optional<Series> series_of(const std::string& name) {
  static const std::regex kPattern(R"((.*-)(\d{1,5})(-of-(\d{1,5})\.safetensors))");
  std::smatch match;
  if (!std::regex_match(name, match, kPattern)) return {};
  return Series{match[1], match[3], std::stoi(match[4]), static_cast<int>(match[2].length())};
}

class ShardLister {
 public:
  ShardLister(const std::string& directory, Listing listing, const Notes& notes)
      : directory_(directory), listing_(std::move(listing)), notes_(notes) {}

  Result<ShardList> run() {
    MOE_RETURN_IF_ERROR(choose());
    if (!missing_.empty()) return missing();
    NameList ignored;
    for (const std::string& name : listing_.safetensors)
      if (!chosen_.contains(name)) ignored.add(name);
    if (!ignored.empty())
      notes_.info("{}: not part of the checkpoint and ignored: {}", directory_, ignored.text());
    return ShardList{{chosen_.begin(), chosen_.end()}, std::move(index_)};
  }

 private:
  Status choose() {
    if (listing_.has_index) return choose_indexed();
    if (listing_.safetensors.empty()) return nothing();
    if (listing_.safetensors.contains(kSingle))
      choose(std::string(kSingle));
    else if (!choose_series())
      chosen_ = listing_.safetensors;
    return {};
  }

  Status choose_indexed() {
    MOE_ASSIGN_OR_RETURN(index_, read_index(directory_ + "/" + std::string(kIndex)));
    for (const auto& [tensor, file] : index_->weight_map) choose(file);
    return {};
  }

  // Every number of every series of which at least one file is there.
  bool choose_series() {
    std::set<std::string> seen;
    for (const std::string& name : listing_.safetensors) {
      const auto series = series_of(name);
      if (!series || !seen.insert(series->prefix + series->suffix).second) continue;
      for (int number = 1; number <= series->count; ++number) choose(series->name(number));
    }
    return !seen.empty();
  }

  void choose(const std::string& name) {
    const bool there = listing_.safetensors.contains(name) || listing_.others.contains(name);
    (there ? chosen_ : missing_).insert(name);
  }

  Status missing() const {
    NameList names;
    for (const std::string& name : missing_) names.add(name);
    return error(StatusCode::not_found, {.file = directory_, .phase = Phase::open},
                 "{}: {} of its files are missing: {}; fetch them, or an index that fits the files "
                 "that are there",
                 directory_, names.count(), names.text());
  }

  Status nothing() const {
    const std::string& other = listing_.other_weights;
    return error(StatusCode::not_found, {.file = directory_, .phase = Phase::open},
                 "{}: there is no *.safetensors file; {}", directory_,
                 other.empty() ? "pass the directory of a checkpoint"
                               : "convert " + other + " to safetensors");
  }

  const std::string& directory_;
  Listing listing_;
  const Notes& notes_;
  std::optional<ShardIndex> index_;
  std::set<std::string, std::less<>> chosen_, missing_;
};

}  // namespace

Result<ShardList> list_shards(const std::string& directory, const Notes& notes) {
  MOE_ASSIGN_OR_RETURN(Listing listing, list(directory));
  return ShardLister(directory, std::move(listing), notes).run();
}

}  // namespace moe
