// A sum over device memory that the host can compute too: whether a copy arrived whole.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace moe::cuda {

// Of word i: odd multiples that differ by place, so that swapped words are found. Sums wrap.
#if defined(__CUDACC__)
__host__ __device__
#endif
    inline uint64_t
    checksum_of(uint64_t word, uint64_t i) {
  return (word ^ (i * 0x9E3779B97F4A7C15ull)) * 0xD6E8FEB86659FD93ull;
}

inline uint64_t checksum(const std::byte* bytes, size_t count) {
  const auto* words = reinterpret_cast<const uint64_t*>(bytes);
  uint64_t sum = 0;
  for (size_t i = 0; i < count / 8; ++i) sum += checksum_of(words[i], i);
  return sum;
}

// Adds that of `count` bytes (a multiple of 8) at `bytes` to *sum; all in device memory.
cudaError_t launch_checksum(const std::byte* bytes, size_t count, uint64_t* sum,
                            cudaStream_t stream);

}  // namespace moe::cuda
