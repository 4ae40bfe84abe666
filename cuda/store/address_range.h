// Device memory at addresses that stay: a range is reserved once, and memory comes and goes below
// parts of it, so that a budget can move while kernels hold addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <cuda.h>

#include "moe/status.h"

namespace moe::cuda {

// Not thread-safe. Nothing of the device runs on a part while it is decommitted.
class AddressRange {
 public:
  // Addresses for at least `bytes` on GPU `device`; no memory yet. unimplemented where the GPU or
  // its driver has no virtual memory management.
  static Result<AddressRange> reserve(int32_t device, size_t bytes);
  AddressRange(AddressRange&& other) noexcept;
  AddressRange& operator=(AddressRange&&) = delete;
  ~AddressRange();

  // Puts memory below [offset, offset + bytes), and counts a use of each granule of it, which parts
  // may share. resource_exhausted with asked and free bytes, and no change, if there is none.
  Status commit(size_t offset, size_t bytes);
  // Ends the use that a commit() of the same part began; memory without a use goes back.
  void decommit(size_t offset, size_t bytes) noexcept;

  std::byte* base() const { return reinterpret_cast<std::byte*>(base_); }
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
