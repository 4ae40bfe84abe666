// What the card itself can do, measured in the run that quotes it.
#pragma once

#include <cuda_runtime_api.h>

namespace moe::bench {

// Bytes per second of reading 4 GiB once; 0 if it could not be measured.
double read_bandwidth();

// FLOP/s of cuBLASLt's 8192^3 product, bf16 or e4m3 with f32 accumulation, on random data. 0 if
// libcublasLt.so.13 is not on the library path.
double matrix_rate(bool fp8);

}  // namespace moe::bench
