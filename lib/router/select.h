// Which experts one row takes and with what weight: the rule of moe/router.h, written once for the
// CPU and for CUDA. 32 lanes share a row (router/team.h); lane j looks after the candidates j,
// j + 32, j + 64 and so on.
//
// The same bits everywhere: exp, log and tanh are ours, sums are double and follow the team's tree,
// everything else is exact or correctly rounded. Compile without contraction of a * b + c
// (-ffp-contract=off, -fmad=false).
//
// Keys are floats and order the candidates by (key descending, index ascending). Where nothing but
// the order of scores matters the logits themselves are the keys: every scoring function and the
// softcap ascend, and logits that differ never tie by rounding. Weights are computed in double from
// the logits and rounded once.
#pragma once

#include <cfloat>

#include "moe/router.h"
#include "router/elementary.h"
#include "router/team.h"

namespace moe::rule {

inline constexpr float kOut = -HUGE_VALF;  // the key of what cannot be selected

// RouterSpec and RouterWeights as kernels take them.
struct Rule {
  int32_t candidates = 0;
  int32_t top_k = 0;

  Scoring scoring = Scoring::softmax;
  Selection selection = Selection::top_k;
  int32_t num_groups = 1;
  int32_t top_groups = 1;
  GroupScore group_score = GroupScore::max;

  Weighting weighting = Weighting::score;
  Normalize normalize = Normalize::none;
  float epsilon = 0;
  float norm_power = 1;
  float scaling = 1;

  float softcap = 0;
  float sparsemixer_epsilon = 0;

  const float* selection_bias = nullptr;    // (candidates), or null
  const float* per_expert_scale = nullptr;  // (candidates), or null

  const void* token_experts = nullptr;  // (vocabulary, >= top_k) i32, or i64 if wide
  bool token_experts_wide = false;
  int64_t token_experts_stride = 0;  // elements from row to row
  int64_t vocabulary = 0;
};

inline Rule make_rule(const RouterSpec& spec, int32_t top_k) {
  return {.candidates = spec.candidates(),
          .top_k = top_k,
          .scoring = spec.scoring,
          .selection = spec.selection,
          .num_groups = spec.num_groups,
          .top_groups = spec.top_groups,
          .group_score = spec.group_score,
          .weighting = spec.weighting,
          .normalize = spec.normalize,
          .epsilon = spec.epsilon,
          .norm_power = spec.norm_power,
          .scaling = spec.scaling,
          .softcap = spec.softcap,
          .sparsemixer_epsilon = spec.sparsemixer_epsilon};
}

// One row: what it brings and where its choice goes.
struct Row {
  const float* logits = nullptr;  // (candidates), before the softcap
  const uint8_t* mask = nullptr;  // (candidates), 0 = not allowed; or null
  int64_t token = 0;              // id, for Selection::token_lookup

  int32_t* ids = nullptr;    // (top_k)
  float* weights = nullptr;  // (top_k)
};

struct Outcome {
  int32_t chosen = 0;      // places filled; the others hold id -1 and weight 0
  bool nonfinite = false;  // the row has a non-finite logit
};

// Floats of scratch that one team needs.
MOE_RULE int64_t scratch_floats(int32_t candidates, int32_t num_groups) {
  return static_cast<int64_t>(candidates) + num_groups;
}

MOE_RULE bool is_finite(float x) { return x >= -FLT_MAX && x <= FLT_MAX; }

// ---- scores

// Of a softmax over some candidates: the largest logit, and sum(exp(logit - max)).
struct Softmax {
  double max = 0;
  double sum = 1;
};

MOE_RULE double capped(const Rule& rule, float logit) {
  return rule.softcap > 0 ? rule.softcap * tanh(static_cast<double>(logit) / rule.softcap) : logit;
}

MOE_RULE double sigmoid(double x) {
  const double e = exp(x < 0 ? x : -x);
  return (x < 0 ? e : 1) / (1 + e);
}

MOE_RULE double score(const Rule& rule, float logit, const Softmax& softmax) {
  const double l = capped(rule, logit);
  switch (rule.scoring) {
    case Scoring::softmax: return exp(l - softmax.max) / softmax.sum;
    case Scoring::sigmoid: return sigmoid(l);
    case Scoring::sqrt_softplus: return sqrt((l > 0 ? l : 0) + log1p(exp(l > 0 ? -l : l)));
    case Scoring::identity: break;
  }
  return l;
}

// ---- order

// The best of one lane that comes after `previous` (index < 0: the best of all).
MOE_RULE Best best_after(const Best& previous, const float* keys, int32_t n, int lane) {
  Best best;
  for (int32_t i = lane; i < n; i += kTeamLanes) {
    const Best candidate{keys[i], i};
    if (candidate.key != kOut && better(candidate, best) &&
        (previous.index < 0 || better(previous, candidate)))
      best = candidate;
  }
  return best;
}

template <class Team>
MOE_RULE Best best_of_all(const Team& team, const float* keys, int32_t n) {
  Best lanes[Team::kLanes];
  for (int j = 0; j < Team::kLanes; ++j) lanes[j] = best_after({}, keys, n, team.lane(j));
  return team.best(lanes);
}

// Writes the indices of the `k` largest keys, best first, into `chosen` (unless null) and the last
// of them into `last`; returns how many there were. Each lane remembers its best, and only the
// winner's lane looks again.
template <class Team>
MOE_RULE int32_t choose(const Team& team, const float* keys, int32_t n, int32_t k, int32_t* chosen,
                        Best* last) {
  Best lanes[Team::kLanes];
  for (int j = 0; j < Team::kLanes; ++j) lanes[j] = best_after({}, keys, n, team.lane(j));
  int32_t found = 0;
  while (found < k) {
    const Best winner = team.best(lanes);
    if (winner.index < 0) break;
    if (chosen && team.leads()) chosen[found] = winner.index;
    *last = winner;
    ++found;
    for (int j = 0; j < Team::kLanes; ++j)
      if (winner.index % kTeamLanes == team.lane(j))
        lanes[j] = best_after(winner, keys, n, team.lane(j));
  }
  team.sync();
  return found;
}

// ---- candidates and their keys

// keys[i] = the logit of i, or kOut. Returns whether a logit was not finite.
template <class Team>
MOE_RULE bool take_candidates(const Team& team, const Rule& rule, const Row& row, float* keys) {
  bool nonfinite[Team::kLanes];
  for (int j = 0; j < Team::kLanes; ++j) {
    nonfinite[j] = false;
    for (int32_t i = team.lane(j); i < rule.candidates; i += kTeamLanes) {
      const bool finite = is_finite(row.logits[i]);
      nonfinite[j] |= !finite;
      keys[i] = finite && (!row.mask || row.mask[i]) ? row.logits[i] : kOut;
    }
  }
  team.sync();
  return team.any(nonfinite);
}

// Over the candidates, whose logits are in `keys`.
template <class Team>
MOE_RULE Softmax softmax_of_candidates(const Team& team, const Rule& rule, const float* keys) {
  const double max = capped(rule, best_of_all(team, keys, rule.candidates).key);
  double lanes[Team::kLanes];
  for (int j = 0; j < Team::kLanes; ++j) {
    lanes[j] = 0;
    for (int32_t i = team.lane(j); i < rule.candidates; i += kTeamLanes)
      if (keys[i] != kOut) lanes[j] += exp(capped(rule, keys[i]) - max);
  }
  return {max, team.sum(lanes)};
}

MOE_RULE bool logits_order_as_keys(const Rule& rule) {
  return !rule.selection_bias && (rule.num_groups == 1 || rule.group_score == GroupScore::max);
}

// keys[i] = score + bias, rounded to float; kOut if that is not finite.
template <class Team>
MOE_RULE void make_keys(const Team& team, const Rule& rule, const Softmax& softmax, float* keys) {
  for (int j = 0; j < Team::kLanes; ++j)
    for (int32_t i = team.lane(j); i < rule.candidates; i += kTeamLanes) {
      if (keys[i] == kOut) continue;
      const double bias = rule.selection_bias ? rule.selection_bias[i] : 0.f;
      const float key = static_cast<float>(score(rule, keys[i], softmax) + bias);
      keys[i] = is_finite(key) ? key : kOut;
    }
  team.sync();
}

// ---- groups

// The largest key, or the sum of the two largest. A group with one candidate comes after all that
// have two, a group without is kOut.
MOE_RULE float group_key(const Rule& rule, const float* keys, int32_t size) {
  float first = kOut, second = kOut;
  for (int32_t i = 0; i < size; ++i) {
    if (keys[i] > first) {
      second = first;
      first = keys[i];
    } else if (keys[i] > second) {
      second = keys[i];
    }
  }
  if (rule.group_score == GroupScore::max || first == kOut) return first;
  const float sum = first + second;
  return sum < -FLT_MAX ? -FLT_MAX : sum;
}

// Takes the keys outside the best groups out. `group_keys`: num_groups floats of scratch.
template <class Team>
MOE_RULE void limit_groups(const Team& team, const Rule& rule, float* keys, float* group_keys) {
  const int32_t size = rule.candidates / rule.num_groups;
  for (int j = 0; j < Team::kLanes; ++j)
    for (int32_t g = team.lane(j); g < rule.num_groups; g += kTeamLanes)
      group_keys[g] = group_key(rule, keys + static_cast<int64_t>(g) * size, size);
  team.sync();
  Best last;
  choose(team, group_keys, rule.num_groups, rule.top_groups, nullptr, &last);
  for (int j = 0; j < Team::kLanes; ++j)
    for (int32_t i = team.lane(j); i < rule.candidates; i += kTeamLanes)
      if (better(last, {group_keys[i / size], i / size})) keys[i] = kOut;
  team.sync();
}

// ---- special selections

// The candidates among the experts that the table names for the row's token, in its order.
template <class Team>
MOE_RULE int32_t look_up(const Team& team, const Rule& rule, const Row& row, const float* keys) {
  if (row.token < 0 || row.token >= rule.vocabulary) return 0;
  const int64_t start = row.token * rule.token_experts_stride;
  int32_t found = 0;
  for (int32_t place = 0; place < rule.top_k; ++place) {
    const int64_t id = rule.token_experts_wide
                           ? static_cast<const int64_t*>(rule.token_experts)[start + place]
                           : static_cast<const int32_t*>(rule.token_experts)[start + place];
    if (id < 0 || id >= rule.candidates || keys[id] == kOut) continue;
    if (team.leads()) row.ids[found] = static_cast<int32_t>(id);
    ++found;
  }
  team.sync();
  return found;
}

// PhiMoE: the softmax of the chosen candidate over those that are within 2 epsilon of it, relative
// to the larger of their magnitude and its value; `before` was chosen earlier and is left out.
template <class Team>
MOE_RULE double sparsemixer_weight(const Team& team, const Rule& rule, const float* keys,
                                   int32_t chosen, int32_t before) {
  const double max = capped(rule, keys[chosen]);
  const double reach = 2 * static_cast<double>(rule.sparsemixer_epsilon);
  double lanes[Team::kLanes];
  for (int j = 0; j < Team::kLanes; ++j) {
    lanes[j] = 0;
    for (int32_t i = team.lane(j); i < rule.candidates; i += kTeamLanes) {
      if (keys[i] == kOut || i == before) continue;
      const double l = capped(rule, keys[i]);
      const double unit = fabs(l) > max ? fabs(l) : max;
      if (max - l <= reach * unit) lanes[j] += exp(l - max);
    }
  }
  return 1 / team.sum(lanes);
}

// ---- weights

// What the weights of a row are made from.
struct Weigher {
  Softmax softmax;             // over the candidates, or over the selected
  double sparsemixer[2] = {};  // of both places
};

// Before normalisation.
MOE_RULE double raw_weight(const Rule& rule, const Row& row, const Weigher& weigher,
                           int32_t place) {
  if (rule.selection == Selection::sparsemixer) return weigher.sparsemixer[place];
  const float logit = row.logits[row.ids[place]];
  switch (rule.weighting) {
    case Weighting::softmax_of_selected_logits:
      return exp(capped(rule, logit) - weigher.softmax.max) / weigher.softmax.sum;
    case Weighting::sigmoid_of_logit: return sigmoid(capped(rule, logit));
    case Weighting::score: break;
  }
  return score(rule, logit, weigher.softmax);
}

template <class Team>
MOE_RULE Softmax softmax_of_selected(const Team& team, const Rule& rule, const Row& row,
                                     int32_t chosen) {
  float max = kOut;
  for (int32_t place = 0; place < chosen; ++place) {
    const float logit = row.logits[row.ids[place]];
    max = logit > max ? logit : max;
  }
  Softmax softmax{capped(rule, max), 0};
  double lanes[Team::kLanes];
  for (int j = 0; j < Team::kLanes; ++j) {
    lanes[j] = 0;
    for (int32_t place = team.lane(j); place < chosen; place += kTeamLanes)
      lanes[j] += exp(capped(rule, row.logits[row.ids[place]]) - softmax.max);
  }
  softmax.sum = team.sum(lanes);
  return softmax;
}

// x^p for x >= 0.
MOE_RULE double power(double x, double p) {
  if (p == 1) return x;
  if (p == 2) return x * x;
  return x < DBL_MIN ? 0 : exp(p * log(x));
}

// What the weights are divided by; 1 where the rule's divisor would be 0.
template <class Team>
MOE_RULE double divisor(const Team& team, const Rule& rule, const Row& row, const Weigher& weigher,
                        int32_t chosen) {
  if (rule.normalize == Normalize::none) return 1;
  const bool p_norm = rule.normalize == Normalize::p_norm;
  double lanes[Team::kLanes];
  for (int j = 0; j < Team::kLanes; ++j) {
    lanes[j] = 0;
    for (int32_t place = team.lane(j); place < chosen; place += kTeamLanes) {
      const double w = raw_weight(rule, row, weigher, place);
      lanes[j] += p_norm ? power(fabs(w), rule.norm_power) : w;
    }
  }
  const double sum = team.sum(lanes), epsilon = rule.epsilon;
  double result = sum + epsilon;
  if (rule.normalize == Normalize::sum_at_least_epsilon) result = sum > epsilon ? sum : epsilon;
  if (p_norm) result = rule.norm_power == 2 ? sqrt(sum) : power(sum, 1. / rule.norm_power);
  return result == 0 ? 1 : result;
}

// Fills the weights of all places, and the ids past `chosen`.
template <class Team>
MOE_RULE void write_weights(const Team& team, const Rule& rule, const Row& row,
                            const Weigher& weigher, int32_t chosen) {
  const double divide_by = divisor(team, rule, row, weigher, chosen);
  for (int j = 0; j < Team::kLanes; ++j)
    for (int32_t place = team.lane(j); place < rule.top_k; place += kTeamLanes) {
      if (place >= chosen) {
        row.ids[place] = -1;
        row.weights[place] = 0;
        continue;
      }
      double w = raw_weight(rule, row, weigher, place) / divide_by;
      if (rule.per_expert_scale) w *= rule.per_expert_scale[row.ids[place]];
      row.weights[place] = static_cast<float>(w * rule.scaling);
    }
}

// ---- the rule

// Fills row.ids and row.weights. `scratch` holds scratch_floats() that no other team uses now.
template <class Team>
MOE_RULE Outcome select(const Team& team, const Rule& rule, const Row& row, float* scratch) {
  float* keys = scratch;
  Outcome outcome;
  outcome.nonfinite = take_candidates(team, rule, row, keys);

  const bool scored_keys = rule.selection == Selection::top_k && !logits_order_as_keys(rule);
  const bool scored_weights =
      rule.selection != Selection::sparsemixer && rule.weighting == Weighting::score;
  Weigher weigher;
  if (rule.scoring == Scoring::softmax && (scored_keys || scored_weights))
    weigher.softmax = softmax_of_candidates(team, rule, keys);

  if (rule.selection == Selection::token_lookup) {
    outcome.chosen = look_up(team, rule, row, keys);
  } else {
    if (scored_keys) make_keys(team, rule, weigher.softmax, keys);
    if (rule.num_groups > 1) limit_groups(team, rule, keys, scratch + rule.candidates);
    Best last;
    outcome.chosen = choose(team, keys, rule.candidates, rule.top_k, row.ids, &last);
  }

  if (rule.selection == Selection::sparsemixer)
    for (int32_t place = 0; place < outcome.chosen; ++place)
      weigher.sparsemixer[place] =
          sparsemixer_weight(team, rule, keys, row.ids[place], place > 0 ? row.ids[0] : -1);
  else if (rule.weighting == Weighting::softmax_of_selected_logits)
    weigher.softmax = softmax_of_selected(team, rule, row, outcome.chosen);

  write_weights(team, rule, row, weigher, outcome.chosen);
  return outcome;
}

}  // namespace moe::rule
