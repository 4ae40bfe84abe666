// The memory of a device that holds slots and a copy of every table, as the store uses it. The CPU
// needs none; cuda/store implements it for a GPU, tests for host memory that plays one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "core/services.h"
#include "moe/status.h"
#include "moe/weights.h"

namespace moe {

class ExpertGemm;
class GeneratedWeights;
struct ExpertTable;
struct LayerBlock;

// A copy on the device of something that the host owns; its memory is free again when it goes.
class DeviceCopy {
 public:
  virtual ~DeviceCopy() = default;
};

// Addresses of a device that stay while memory below them comes and goes. Not thread-safe.
class DeviceRange {
 public:
  virtual ~DeviceRange() = default;
  virtual std::byte* base() const = 0;

  // Puts memory below [offset, offset + bytes); resource_exhausted, and no change, if there is
  // none.
  virtual Status commit(size_t offset, size_t bytes) = 0;
  // Gives that of an earlier commit() of the same part back. Nothing runs on it.
  virtual void decommit(size_t offset, size_t bytes) noexcept = 0;
};

// Safe for concurrent use.
class StoreDevice {
 public:
  virtual ~StoreDevice() = default;

  virtual Allocator& memory() = 0;        // of slots
  virtual size_t free_bytes() const = 0;  // on the device, for messages

  // Whether memory can come and go below addresses that stay; otherwise pools are taken from
  // memory() whole, and reserve() is not called.
  virtual bool moves() const { return false; }
  virtual Result<std::unique_ptr<DeviceRange>> reserve(size_t bytes);

  // 64 bits over the bytes of a slot, computed on the device.
  virtual Result<uint64_t> digest(const std::byte* slot, size_t bytes) = 0;

  // Calls `pack` with `bytes` of host memory that the device copies from well, and copies what it
  // wrote to `slot`. Returns the slot's digest once the copy is complete and has been compared with
  // the original.
  virtual Result<uint64_t> fill(std::byte* slot, size_t bytes,
                                const std::function<Status(std::byte*)>& pack) = 0;

  // Whether generate() knows the slots of `gemm`; then it computes there what fill() with that
  // backend's pack() would copy, and returns the same digest.
  virtual bool generates(const ExpertGemm& gemm) const = 0;
  virtual Result<uint64_t> generate(std::byte* slot, const ExpertSpec& spec,
                                    const GeneratedWeights& weights, int32_t layer,
                                    int32_t expert) = 0;

  // The block's tensors as kernels read them.
  virtual Result<std::unique_ptr<DeviceCopy>> copy(const LayerSpec& spec,
                                                   const LayerBlock& block) = 0;

  // Makes table.copy, and has forwards of the layer read it from now on. `layer` counts the store's
  // layers from 0. On an error they go on to read the one before.
  virtual Status publish(size_t layer, ExpertTable& table) = 0;

  // Waits until no forward on the device reads a table that was replaced before this call; as
  // EpochReaders::wait_for_grace.
  virtual Status wait_for_grace(const Clock& clock, int64_t end_ns) = 0;
};

// For `layers` layers on GPU `index`. unavailable or unimplemented, with the reason, if this build
// or machine cannot.
Result<std::unique_ptr<StoreDevice>> open_cuda_store(int32_t index, size_t layers,
                                                     const Services& services);

}  // namespace moe
