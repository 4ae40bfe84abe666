// Counts every operator new of this test program.
#pragma once

#include <cstdint>

namespace moe::test {

int64_t allocations();

}  // namespace moe::test
