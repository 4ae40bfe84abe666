#include "store/address_range.h"

#include <utility>

#include "runtime/driver.h"
#include "runtime/scope.h"

namespace moe::cuda {
namespace {

// The driver's functions, all or none.
struct Driver {
#define MOE_DRIVER(name) decltype(::name)* name = driver_function<decltype(::name)>(#name)
  MOE_DRIVER(cuMemGetAllocationGranularity);
  MOE_DRIVER(cuMemAddressReserve);
  MOE_DRIVER(cuMemAddressFree);
  MOE_DRIVER(cuMemCreate);
  MOE_DRIVER(cuMemRelease);
  MOE_DRIVER(cuMemMap);
  MOE_DRIVER(cuMemUnmap);
  MOE_DRIVER(cuMemSetAccess);
#undef MOE_DRIVER
  bool complete() const {
    return cuMemGetAllocationGranularity && cuMemAddressReserve && cuMemAddressFree &&
           cuMemCreate && cuMemRelease && cuMemMap && cuMemUnmap && cuMemSetAccess;
  }
};

const Driver& driver() {
  static const Driver functions;
  return functions;
}

CUmemAllocationProp memory_of(int32_t device) {
  CUmemAllocationProp memory = {};
  memory.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  memory.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
  return memory;
}

Status cannot_reserve(int32_t device, size_t bytes, CUresult result) {
  return error(StatusCode::resource_exhausted, {.phase = Phase::plan},
               "cannot reserve {} bytes of addresses on cuda:{} (driver error {})", bytes, device,
               static_cast<int>(result));
}

}  // namespace

AddressRange::AddressRange(int32_t device, size_t granule, size_t count)
    : device_(device), granule_(granule), granules_(count) {}

AddressRange::AddressRange(AddressRange&& other) noexcept
    : device_(other.device_),
      granule_(other.granule_),
      base_(std::exchange(other.base_, 0)),
      committed_(std::exchange(other.committed_, 0)),
      granules_(std::exchange(other.granules_, {})) {}

bool AddressRange::supported(int32_t device) {
  const DeviceScope scope(device);
  static auto* const ask = driver_function<decltype(cuDeviceGetAttribute)>("cuDeviceGetAttribute");
  int yes = 0;
  return driver().complete() && ask &&
         ask(&yes, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device) ==
             CUDA_SUCCESS &&
         yes;
}

Result<AddressRange> AddressRange::reserve(int32_t device, size_t bytes) {
  const DeviceScope scope(device);
  const CUmemAllocationProp memory = memory_of(device);
  size_t granule = 0;
  CUresult result =
      driver().cuMemGetAllocationGranularity(&granule, &memory, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  if (result != CUDA_SUCCESS) return cannot_reserve(device, bytes, result);
  const size_t count = bytes / granule + (bytes % granule != 0);
  AddressRange range(device, granule, count);
  if (count == 0) return range;
  result = driver().cuMemAddressReserve(&range.base_, count * granule, 0, 0, 0);
  if (result != CUDA_SUCCESS) return cannot_reserve(device, bytes, result);
  return range;
}

AddressRange::~AddressRange() {
  if (!base_) return;
  const DeviceScope scope(device_);
  for (size_t i = 0; i < granules_.size(); ++i)
    if (granules_[i].uses > 0) unmap(i);
  (void)driver().cuMemAddressFree(base_, granules_.size() * granule_);
}

CUresult AddressRange::map(size_t i) {
  const CUmemAllocationProp memory = memory_of(device_);
  const CUmemAccessDesc access = {memory.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  const CUdeviceptr at = base_ + i * granule_;
  CUmemGenericAllocationHandle& handle = granules_[i].memory;
  CUresult result = driver().cuMemCreate(&handle, granule_, &memory, 0);
  if (result != CUDA_SUCCESS) return result;
  result = driver().cuMemMap(at, granule_, 0, handle, 0);
  if (result == CUDA_SUCCESS) {
    result = driver().cuMemSetAccess(at, granule_, &access, 1);
    if (result == CUDA_SUCCESS) return ++committed_, result;
    (void)driver().cuMemUnmap(at, granule_);
  }
  (void)driver().cuMemRelease(handle);
  return result;
}

void AddressRange::unmap(size_t i) noexcept {
  (void)driver().cuMemUnmap(base_ + i * granule_, granule_);
  (void)driver().cuMemRelease(granules_[i].memory);
  --committed_;
}

Status AddressRange::commit(size_t offset, size_t bytes) {
  if (bytes == 0) return {};
  const DeviceScope scope(device_);
  const size_t first = offset / granule_, last = (offset + bytes - 1) / granule_;
  for (size_t i = first; i <= last; ++i) {
    const CUresult result = granules_[i].uses > 0 ? CUDA_SUCCESS : map(i);
    if (result == CUDA_SUCCESS) {
      ++granules_[i].uses;
      continue;
    }
    if (i > first) decommit(first * granule_, (i - first) * granule_);
    return error(StatusCode::resource_exhausted, {.phase = Phase::load},
                 "no memory on cuda:{}: asked {} bytes, free {} (driver error {})", device_, bytes,
                 free_bytes(device_), static_cast<int>(result));
  }
  return {};
}

void AddressRange::decommit(size_t offset, size_t bytes) noexcept {
  if (bytes == 0) return;
  const DeviceScope scope(device_);
  const size_t first = offset / granule_, last = (offset + bytes - 1) / granule_;
  for (size_t i = first; i <= last; ++i)
    if (--granules_[i].uses == 0) unmap(i);
}

}  // namespace moe::cuda
