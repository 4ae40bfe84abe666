// Dot products of bytes at the rate of this machine's units. x86 only; elsewhere the loops do
// nothing.
#pragma once

#include <cstdint>

namespace moe::cli {

// Each makes `rounds` rounds and says how many operations that were, 2 per multiply-add.
double dot_int8(int64_t rounds);
double dot_int4(int64_t rounds);  // weights are unpacked once for twelve rows

}  // namespace moe::cli
