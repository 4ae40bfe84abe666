// Device memory at addresses that stay: a range is reserved once, and memory comes and goes below
// parts of it, so that a budget can move while kernels hold addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <cuda.h>

#include "store/device.h"

namespace moe::cuda {

// Parts are counted by granules, which neighbours may share.
class AddressRange final : public DeviceRange {
 public:
  // Whether the GPU and its driver have virtual memory management.
  static bool supported(int32_t device);

  // Addresses for at least `bytes` on GPU `device`, which is supported; no memory yet.
  static Result<AddressRange> reserve(int32_t device, size_t bytes);
  AddressRange(AddressRange&& other) noexcept;
  AddressRange& operator=(AddressRange&&) = delete;
  ~AddressRange() override;

  std::byte* base() const override { return reinterpret_cast<std::byte*>(base_); }
  // The message of a failure says asked and free bytes.
  Status commit(size_t offset, size_t bytes) override;
  void decommit(size_t offset, size_t bytes) noexcept override;

  size_t granule() const { return granule_; }  // bytes, a power of two
  size_t committed_bytes() const { return committed_ * granule_; }

 private:
  struct Granule {
    CUmemGenericAllocationHandle memory = 0;
    int32_t uses = 0;
  };

  AddressRange(int32_t device, size_t granule, size_t count);
  CUresult map(size_t granule);
  void unmap(size_t granule) noexcept;

  int32_t device_;
  size_t granule_;
  CUdeviceptr base_ = 0;
  size_t committed_ = 0;  // granules
  std::vector<Granule> granules_;
};

}  // namespace moe::cuda
