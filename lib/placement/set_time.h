// The time of one set of experts under one placement, in experts: the fewest that the busiest rank
// executes when every expert is served by one of its copies (a matching; Marchal, METRO). Ranks are
// bits of a word here, because planning asks millions of times.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace moe::placement {

using RankMask = uint64_t;
inline constexpr int32_t kMaskRanks = 64;

class SetTimer {
 public:
  explicit SetTimer(int32_t ranks) : ranks_(ranks) {}

  // `holders[e]` are the ranks that hold expert e. Experts without a rank cost as if each stood in
  // line behind the whole set, so that placing any of them is a gain.
  int32_t time(std::span<const int32_t> set, const std::vector<RankMask>& holders);

 private:
  bool relieve(int32_t rank);

  struct Flexible {
    RankMask ranks;
    int32_t at;
  };
  int32_t ranks_;
  std::array<int32_t, kMaskRanks> load_{};
  std::vector<Flexible> flexible_;
};

}  // namespace moe::placement
