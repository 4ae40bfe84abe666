// Catch2, version 2 (Debian 12) or 3.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <cstdint>
#include <string>

namespace moe::test {

// Ends the current test case as skipped; the reason is counted and printed. Use with return:
//   if (!have_shared()) return skip("../shared is absent");
void skip(const std::string& reason);

// The folder of test data that is not part of the project: ../shared, or --shared DIR.
const std::string& shared_dir();
bool have_shared();  // if false, a test that needs it must skip; if true it must not

// One seed a run, printed at the start of the program; --seed N repeats it.
uint64_t seed();

}  // namespace moe::test
