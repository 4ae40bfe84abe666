// Words a user typed: the nearest known one, devices, element types.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "moe/expert_gemm.h"
#include "moe/tensor.h"

namespace moe::cli {

// " Did you mean 'synth'?", or "" if nothing is near.
std::string did_you_mean(std::string_view word, const std::vector<std::string>& known);

// "cpu", "cuda" or "cuda:1". Anything else is wrong usage.
Device parse_device(const std::string& text);

// Names of RowPrecision, and the one of them that `text` is.
const std::vector<std::string>& row_precisions();
RowPrecision parse_rows(const std::string& text);

// "bf16". Anything that is not an element type is wrong usage.
DType parse_dtype(const std::string& text);

}  // namespace moe::cli
