// Counts every operator new of this test program, and makes some fail.
#pragma once

#include <cstdint>

namespace moe::test {

int64_t allocations();              // calls so far
int64_t outstanding_allocations();  // not deleted yet

// From now on the n-th call (from 1), or it and all after it, finds no memory. 0: none does.
void fail_allocation(int64_t nth, bool for_ever = false);
bool allocation_failed();  // since then

}  // namespace moe::test
