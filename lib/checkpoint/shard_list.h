// Which files of a directory make up a checkpoint, and what its index says of them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "moe/host.h"

namespace moe {

// model.safetensors.index.json
struct ShardIndex {
  std::string path;
  std::vector<std::pair<std::string, std::string>> weight_map;  // tensor, bare file name
  std::optional<int64_t> total_size;                            // bytes of all tensors
};

struct ShardList {
  std::vector<std::string> files;  // bare names, sorted; each exists
  std::optional<ShardIndex> index;
};

// What is worth telling but no failure.
class Notes {
 public:
  explicit Notes(LogSink* log) : log_(log) {}

  template <class... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) const {
    if (log_) log_->log(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  LogSink* log_;
};

// Names for a message. All are counted; past the first thousand they are no longer spelled.
class NameList {
 public:
  void add(std::string_view name) {
    if (++count_ > kMost) return;
    if (count_ > 1) text_ += ", ";
    text_ += name;
  }
  bool empty() const { return count_ == 0; }
  size_t count() const { return count_; }
  std::string text() const {
    return count_ <= kMost ? text_ : fmt::format("{} and {} more", text_, count_ - kMost);
  }

 private:
  static constexpr size_t kMost = 1000;
  size_t count_ = 0;
  std::string text_;
};

// The rules are told at TensorDirectory::open(). not_found names every missing shard.
Result<ShardList> list_shards(const std::string& directory, const Notes& notes);

}  // namespace moe
