// How often each distinct set of experts was seen, in memory that is reserved once: a hash table of
// indices into arrays that grow in order of arrival.
#pragma once

#include <algorithm>
#include <bit>
#include <span>
#include <vector>

#include <absl/hash/hash.h>
#include <absl/strings/string_view.h>

#include "moe/usage.h"

namespace moe::placement {

class SetCounter {
 public:
  // Of sets of at most `width` experts; at most `max_sets` (at least 1) of them.
  SetCounter(int64_t max_sets, int32_t width)
      : max_sets_(max_sets), width_(width), table_(std::bit_ceil(2 * uint64_t(max_sets)), kNone) {
    counts_.reserve(max_sets);
    experts_.reserve(max_sets * width);
  }

  void add(std::span<const int32_t> ascending) {
    uint64_t entry = find(ascending);
    if (table_[entry] != kNone) {
      ++counts_[table_[entry]];
      return;
    }
    if (size() == max_sets_) {
      make_room();
      entry = find(ascending);
    }
    table_[entry] = static_cast<int32_t>(size());
    experts_.insert(experts_.end(), ascending.begin(), ascending.end());
    experts_.resize(experts_.size() + width_ - ascending.size(), kNone);
    counts_.push_back(1);
  }

  // Halves all counts and forgets what was seen but once.
  void fade() {
    std::fill(table_.begin(), table_.end(), kNone);
    int64_t kept = 0;
    for (int64_t set = 0; set < size(); ++set) {
      if (counts_[set] < 2) continue;
      std::copy_n(experts_.begin() + set * width_, width_, experts_.begin() + kept * width_);
      counts_[kept] = counts_[set] / 2;
      table_[find(experts_of(kept))] = static_cast<int32_t>(kept);
      ++kept;
    }
    experts_.resize(kept * width_);
    counts_.resize(kept);
  }

  // In order of arrival.
  ExpertSets sets() const {
    ExpertSets out;
    for (int64_t set = 0; set < size(); ++set) out.add(experts_of(set), counts_[set]);
    return out;
  }

 private:
  static constexpr int32_t kNone = -1;

  int64_t size() const { return static_cast<int64_t>(counts_.size()); }

  std::span<const int32_t> experts_of(int64_t set) const {
    const auto begin = experts_.begin() + set * width_;
    return {begin, std::find(begin, begin + width_, kNone)};
  }

  // The entry that holds the set, or the free one where it belongs.
  uint64_t find(std::span<const int32_t> set) const {
    const uint64_t mask = table_.size() - 1;
    const absl::string_view bytes(reinterpret_cast<const char*>(set.data()), set.size_bytes());
    for (uint64_t entry = absl::Hash<absl::string_view>()(bytes) & mask;;
         entry = (entry + 1) & mask)
      if (table_[entry] == kNone || std::ranges::equal(experts_of(table_[entry]), set))
        return entry;
  }

  void make_room() {
    while (size() > max_sets_ / 2) fade();
  }

  int64_t max_sets_;
  int32_t width_;
  std::vector<int32_t> table_;    // power of two, at most half full: indices of sets
  std::vector<int32_t> experts_;  // (sets, width), ascending, then kNone
  std::vector<double> counts_;    // (sets)
};

}  // namespace moe::placement
