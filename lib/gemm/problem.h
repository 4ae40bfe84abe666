// What every CPU backend asks of a spec and of a batch before it computes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/expert_gemm.h"

namespace moe {

// ok, or invalid_argument with the field, its value and its range. A spec that passes keeps every
// byte count of one expert below 2^62.
Status check_spec(const ExpertSpec& spec);

// unimplemented unless the weights are f32, f16 or bf16. Needs check_spec().
Status check_float_format(const ExpertSpec& spec, const char* backend);

// unimplemented unless the weights are int8 or int4 in groups that are multiples of 32 inputs (or
// whole rows). Needs check_spec().
Status check_integer_format(const ExpertSpec& spec, const char* backend);

// ok if `batch` is one that run() may compute on the CPU.
Status check_cpu_batch(const ExpertSpec& spec, const ExpertBatch& batch, size_t workspace_bytes);

// Pairs in all groups together.
int64_t pairs_in(const ExpertBatch& batch);

// Columns [begin, begin + count) of the row of `pair` times its input weight, as dense f32.
void load_pair(const ExpertBatch& batch, int64_t pair, int64_t begin, int64_t count, float* out);

constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

}  // namespace moe
