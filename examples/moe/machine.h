// What the machine itself can do: reading DRAM, and fused multiply-adds. Measured beside the points
// of a bench, because both move with the load and the clock of the moment.
#pragma once

#include <cstddef>
#include <vector>

#include "moe/host.h"

namespace moe::cli {

class Limits {
 public:
  // Uses all of `executor`'s threads, and a buffer much larger than the last-level cache.
  explicit Limits(Executor& executor);

  double dram_read_gbs();  // one sample, 1e9 bytes/s
  double fma_gflops();     // one sample, f32, 2 per multiply-add

 private:
  Executor& executor_;
  std::vector<float> buffer_;
};

// Bytes that new memory may take without swapping; a guess of 1 GiB where the system does not say.
size_t available_memory();

// Bytes of the last-level cache; a guess of 32 MiB where the system does not say.
size_t last_level_cache();

}  // namespace moe::cli
