// Device memory for tests and benchmarks. Errors are exceptions: a test reports them, a program
// ends.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

namespace moe::cuda::test {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
#define MOE_CHECK(call) ::moe::cuda::test::check(call, #call)

// Without a driver the runtime answers 35, without a device 100.
inline bool have_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// Every byte starts as 0xFF: NaN as a float, -1 as an index.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count) {
    const size_t bytes = std::max<int64_t>(count, 1) * sizeof(T);
    MOE_CHECK(cudaMalloc(reinterpret_cast<void**>(&data_), bytes));
    MOE_CHECK(cudaMemset(data_, 0xFF, bytes));
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(static_cast<int64_t>(values.size())) {
    MOE_CHECK(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  int64_t size() const { return count_; }
  std::vector<T> host() const { return host(0, count_); }
  std::vector<T> host(int64_t first, int64_t count) const {
    std::vector<T> out(count);
    MOE_CHECK(cudaMemcpy(out.data(), data_ + first, count * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
  }

 private:
  T* data_ = nullptr;
  int64_t count_;
};

}  // namespace moe::cuda::test
