// The router's inner loops, compiled once per instruction set and chosen at run time.
#pragma once

#include <cstdint>

#include "moe/router.h"
#include "router/select.h"

namespace moe {

// logits[r][c] = rows[r] . weight[c] + bias[c], in f32. The bits of one logit depend on its row and
// its weights alone.
struct LogitsProblem {
  const float* rows = nullptr;  // (rows, hidden), row_stride apart
  int64_t row_stride = 0;
  int64_t hidden = 0;

  const void* weight = nullptr;  // (candidates, hidden), weight_stride elements apart
  DType weight_type = DType::f32;
  int64_t weight_stride = 0;
  const float* bias = nullptr;  // (candidates), or null

  float* logits = nullptr;  // (rows, logits_stride)
  int64_t logits_stride = 0;
};

// A block of the problem: rows [first_row, last_row) by candidates [first, last).
struct LogitsBlock {
  int64_t first_row = 0, last_row = 0;
  int64_t first = 0, last = 0;
};

void compute_logits(const LogitsProblem& problem, const LogitsBlock& block);

// rule::select() by one thread.
rule::Outcome select_row(const rule::Rule& rule, const rule::Row& row, float* scratch);

}  // namespace moe
