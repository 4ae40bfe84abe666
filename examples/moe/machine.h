// What the machine itself can do: reading DRAM, fused multiply-adds, dot products. Measured beside
// the points of a bench, because both move with the load and the clock of the moment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "moe/host.h"

namespace moe::cli {

class Limits {
 public:
  // Uses all of `executor`'s threads, and a buffer much larger than the last-level cache.
  explicit Limits(Executor& executor);

  double dram_read_gbs();  // one sample, 1e9 bytes/s
  double fma_gflops();     // one sample, f32, 2 per multiply-add

  // One sample of dot products of bytes, 2 operations per multiply-add; 0 where this program has no
  // loop for the machine. int4: weights that are unpacked once for twelve rows.
  double int8_dot_gops();
  double int4_dot_gops();

 private:
  // Calls loop(rounds) on each thread; what they did together, per second.
  double gops(double (*loop)(int64_t rounds), int64_t rounds);

  Executor& executor_;
  std::vector<float> buffer_;
};

// Bytes that new memory may take without swapping; a guess of 1 GiB where the system does not say.
size_t available_memory();

// Bytes of the last-level cache; a guess of 32 MiB where the system does not say.
size_t last_level_cache();

}  // namespace moe::cli
