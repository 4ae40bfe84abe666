// The routing rule as one would write it down: long double, full sorts, no thought of speed. Shares
// no code with lib/router.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/router.h"

namespace moe::test {

struct OracleRow {
  std::vector<float> logits;  // before the softcap
  std::vector<uint8_t> mask;  // empty: all allowed
  std::vector<int64_t> lookup;
};

struct OracleRule {
  RouterSpec spec;
  int32_t top_k = 0;
  std::vector<float> selection_bias, per_expert_scale;  // empty: absent
};

struct OracleChoice {
  std::vector<int32_t> ids;
  std::vector<long double> weights;
  std::vector<long double> keys;        // of every candidate before groups; -inf: taken out
  std::vector<long double> group_keys;  // empty without groups
  bool nonfinite = false;
  int32_t chosen = 0;
};

OracleChoice oracle(const OracleRule& rule, const OracleRow& row);

}  // namespace moe::test
