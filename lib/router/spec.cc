// validate(RouterSpec): every field against its range.
#include <cmath>

#include "core/error.h"
#include "moe/router.h"

namespace moe {
namespace {

// Far above any published model; keeps products of sizes small.
constexpr int64_t kMaxCandidates = 65536;

constexpr Place kPlace{.phase = Phase::route};

Status check_range(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return {};
  return invalid_argument(kPlace, "RouterSpec.{} is {}; it must lie in [{}, {}]", field, value, low,
                          high);
}

template <class Enum>
Status check_enum(const char* field, Enum value, Enum last) {
  return check_range(field, static_cast<int64_t>(value), 0, static_cast<int64_t>(last));
}

Status check_not_negative(const char* field, float value) {
  if (std::isfinite(value) && value >= 0) return {};
  return invalid_argument(kPlace, "RouterSpec.{} is {}; it must be finite and at least 0", field,
                          value);
}

Status check_enums(const RouterSpec& s) {
  MOE_RETURN_IF_ERROR(check_enum("scoring", s.scoring, Scoring::identity));
  MOE_RETURN_IF_ERROR(check_enum("selection", s.selection, Selection::token_lookup));
  MOE_RETURN_IF_ERROR(check_enum("group_score", s.group_score, GroupScore::top2_sum));
  MOE_RETURN_IF_ERROR(check_enum("weighting", s.weighting, Weighting::sigmoid_of_logit));
  return check_enum("normalize", s.normalize, Normalize::p_norm);
}

Status check_sizes(const RouterSpec& s) {
  MOE_RETURN_IF_ERROR(check_range("num_experts", s.num_experts, 1, kMaxCandidates));
  MOE_RETURN_IF_ERROR(
      check_range("num_zero_experts", s.num_zero_experts, 0, kMaxCandidates - s.num_experts));
  MOE_RETURN_IF_ERROR(check_range("top_k", s.top_k, 1, s.candidates()));
  return check_range("capacity", s.capacity, 0, INT64_MAX);
}

Status check_groups(const RouterSpec& s) {
  MOE_RETURN_IF_ERROR(check_range("num_groups", s.num_groups, 1, s.candidates()));
  MOE_RETURN_IF_ERROR(check_range("top_groups", s.top_groups, 1, s.num_groups));
  if (s.num_groups == 1) return {};
  const int32_t size = s.candidates() / s.num_groups;
  if (size * s.num_groups != s.candidates())
    return invalid_argument(kPlace,
                            "RouterSpec.num_groups is {}; it must divide the number of candidates, "
                            "which is {}",
                            s.num_groups, s.candidates());
  if (s.group_score == GroupScore::top2_sum && size < 2)
    return invalid_argument(kPlace,
                            "RouterSpec.group_score is top2_sum, but a group has {} candidate; it "
                            "must have at least 2",
                            size);
  if (static_cast<int64_t>(size) * s.top_groups < s.top_k)
    return invalid_argument(kPlace,
                            "RouterSpec.top_groups is {} groups of {} candidates; they must hold "
                            "at least top_k, which is {}",
                            s.top_groups, size, s.top_k);
  return {};
}

Status check_numbers(const RouterSpec& s) {
  MOE_RETURN_IF_ERROR(check_not_negative("epsilon", s.epsilon));
  MOE_RETURN_IF_ERROR(check_not_negative("softcap", s.softcap));
  MOE_RETURN_IF_ERROR(check_not_negative("sparsemixer_epsilon", s.sparsemixer_epsilon));
  MOE_RETURN_IF_ERROR(check_not_negative("input_norm_epsilon", s.input_norm_epsilon));
  MOE_RETURN_IF_ERROR(check_not_negative("norm_power", s.norm_power));
  if (s.norm_power == 0)
    return invalid_argument(kPlace, "RouterSpec.norm_power is 0; it must be above 0");
  if (!std::isfinite(s.scaling))
    return invalid_argument(kPlace, "RouterSpec.scaling is {}; it must be finite", s.scaling);
  return {};
}

Status check_selection(const RouterSpec& s) {
  if (s.selection == Selection::top_k) return {};
  if (s.num_groups != 1)
    return invalid_argument(kPlace, "RouterSpec.num_groups is {}; with selection {} it must be 1",
                            s.num_groups,
                            s.selection == Selection::sparsemixer ? "sparsemixer" : "token_lookup");
  if (s.selection != Selection::sparsemixer) return {};
  if (s.top_k > 2)
    return invalid_argument(
        kPlace, "RouterSpec.top_k is {}; with selection sparsemixer it must lie in [1, 2]",
        s.top_k);
  if (s.weighting != Weighting::score)
    return invalid_argument(kPlace,
                            "RouterSpec.weighting is {}; with selection sparsemixer, which makes "
                            "its own weights, it must be {} (score)",
                            static_cast<int>(s.weighting), static_cast<int>(Weighting::score));
  return {};
}

}  // namespace

Status validate(const RouterSpec& spec) {
  return guarded(kPlace, [&]() -> Status {
    MOE_RETURN_IF_ERROR(check_enums(spec));
    MOE_RETURN_IF_ERROR(check_sizes(spec));
    MOE_RETURN_IF_ERROR(check_groups(spec));
    MOE_RETURN_IF_ERROR(check_numbers(spec));
    return check_selection(spec);
  });
}

}  // namespace moe
