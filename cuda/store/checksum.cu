#include "runtime/launch.cuh"
#include "runtime/ptx.cuh"
#include "store/checksum.h"

namespace moe::cuda {
namespace {

__global__ void __launch_bounds__(256)
    checksum_kernel(const uint64_t* words, uint64_t count, unsigned long long* sum) {
  wait_for_previous_kernel();
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  uint64_t mine = 0;
  for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step)
    mine += checksum_of(words[i], i);
  for (int d = 16; d > 0; d /= 2) mine += __shfl_xor_sync(~0u, mine, d);
  if (threadIdx.x % 32 == 0) atomicAdd(sum, static_cast<unsigned long long>(mine));
}

}  // namespace

cudaError_t launch_checksum(const std::byte* bytes, size_t count, uint64_t* sum,
                            cudaStream_t stream) {
  const uint64_t words = count / 8;
  const uint64_t blocks = (words + 255) / 256;
  if (blocks == 0) return cudaSuccess;
  return launch(checksum_kernel, static_cast<unsigned>(blocks < 512 ? blocks : 512), 256, 0, stream,
                reinterpret_cast<const uint64_t*>(bytes), words,
                reinterpret_cast<unsigned long long*>(sum));
}

}  // namespace moe::cuda
