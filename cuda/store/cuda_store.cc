#include "store/cuda_store.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "gemm/backend.h"
#include "gemm/generate.h"
#include "gemm/pack.h"
#include "router/cpu_router.h"
#include "runtime/driver.h"
#include "store/address_range.h"
#include "store/block_copy.h"
#include "store/checksum.h"
#include "store/expert_table.h"

namespace moe::cuda {
namespace {

// A table in the arena.
class TableCopy final : public DeviceCopy {
 public:
  TableCopy(Arena& arena, std::byte* data, size_t bytes)
      : arena_(arena), data_(data), bytes_(bytes) {}
  ~TableCopy() override { arena_.give_back(data_, bytes_); }
  const DeviceTable* table() const { return reinterpret_cast<const DeviceTable*>(data_); }

 private:
  Arena& arena_;
  std::byte* data_;
  size_t bytes_;
};

std::vector<std::byte> table_image(const ExpertTable& table, const BlockCopy& block) {
  std::vector<std::byte> image(static_cast<size_t>(table_bytes(block.candidates())));
  DeviceTable head;
  head.epoch = table.epoch;
  head.block = block.tensors();
  head.shared_slot = static_cast<int32_t>(table.block->shared_slot);
  head.candidates = block.candidates();
  std::memcpy(image.data(), &head, sizeof head);
  auto* slots = reinterpret_cast<int32_t*>(image.data() + sizeof head);
  std::fill_n(slots, head.candidates, -1);
  for (size_t e = 0; e < table.experts.size(); ++e)
    if (table.experts[e].slot) slots[e] = static_cast<int32_t>(table.experts[e].slot_index);
  return image;
}

}  // namespace

CudaStore::CudaStore(int32_t index, const Services& services)
    : index_(index),
      own_memory_(index),
      memory_(services.host().device_memory ? *services.host().device_memory : own_memory_),
      arena_(memory_) {}

Result<std::unique_ptr<CudaStore>> CudaStore::open(int32_t index, size_t layers,
                                                   const Services& services) {
  MOE_RETURN_IF_ERROR(check_device(index));
  const DeviceScope scope(index);
  std::unique_ptr<CudaStore> store(new CudaStore(index, services));
  MOE_RETURN_IF_ERROR(store->start(layers));
  return store;
}

Status CudaStore::start(size_t layers) {
  const Place place = {.phase = Phase::plan};
  MOE_RETURN_IF_ERROR(
      check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "make a stream", place));
  MOE_RETURN_IF_ERROR(
      check(cudaEventCreateWithFlags(&read_, cudaEventDisableTiming), "make an event", place));
  const size_t counters = kMostContexts * sizeof(EpochCounters);
  MOE_RETURN_IF_ERROR(
      check(cudaHostAlloc(reinterpret_cast<void**>(&seen_), counters, cudaHostAllocDefault),
            "allocate pinned memory", place));
  fixed_bytes_ = counters + layers * sizeof(DeviceTable*);
  fixed_ = static_cast<std::byte*>(memory_.allocate(fixed_bytes_, 256));
  if (!fixed_)
    return error(StatusCode::resource_exhausted, place,
                 "no memory on cuda:{}: asked {} bytes, free {}", index_, fixed_bytes_,
                 free_bytes());
  counters_ = reinterpret_cast<EpochCounters*>(fixed_);
  cells_ = reinterpret_cast<const DeviceTable**>(fixed_ + counters);
  reader_taken_.resize(kMostContexts, false);
  return clear(fixed_, fixed_bytes_);
}

Status CudaStore::clear(void* to, size_t bytes) {
  MOE_RETURN_IF_ERROR(check(cudaMemsetAsync(to, 0, bytes, stream_), "clear memory"));
  return check(cudaStreamSynchronize(stream_), "clear memory");
}

Status CudaStore::read(const void* from, void* to, size_t bytes) {
  MOE_RETURN_IF_ERROR(check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_),
                            "read device memory"));
  return check(cudaStreamSynchronize(stream_), "read device memory");
}

CudaStore::~CudaStore() {
  const DeviceScope scope(index_);
  if (stream_) {
    (void)cudaStreamSynchronize(stream_);
    (void)cudaStreamDestroy(stream_);
  }
  if (read_) (void)cudaEventDestroy(read_);
  if (seen_) (void)cudaFreeHost(seen_);
  if (fixed_) memory_.deallocate(fixed_, fixed_bytes_, 256);
}

bool CudaStore::moves() const {
  return &memory_ == &own_memory_ && AddressRange::supported(index_);
}

Result<std::unique_ptr<DeviceRange>> CudaStore::reserve(size_t bytes) {
  MOE_ASSIGN_OR_RETURN(auto range, AddressRange::reserve(index_, bytes));
  return std::unique_ptr<DeviceRange>(new AddressRange(std::move(range)));
}

namespace {

// Of `bytes` of device memory, once what was enqueued before is complete.
Result<uint64_t> digest_of(const std::byte* slot, size_t bytes, Staging& staging) {
  const cudaStream_t stream = staging.stream;
  cudaError_t result = cudaMemsetAsync(staging.sum, 0, 8, stream);
  if (result == cudaSuccess) result = launch_checksum(slot, bytes, staging.sum, stream);
  if (result == cudaSuccess)
    result = cudaMemcpyAsync(staging.sum_back, staging.sum, 8, cudaMemcpyDeviceToHost, stream);
  if (result == cudaSuccess) result = cudaStreamSynchronize(stream);
  MOE_RETURN_IF_ERROR(check(result, "read an expert's slot", {.phase = Phase::load}));
  return *staging.sum_back;
}

}  // namespace

Result<uint64_t> CudaStore::with_staging(size_t bytes,
                                         const std::function<Result<uint64_t>(Staging&)>& work) {
  const DeviceScope scope(index_);
  MOE_ASSIGN_OR_RETURN(auto staging, staging_.take(bytes));
  const Result<uint64_t> result = guarded({.phase = Phase::load}, [&] { return work(*staging); });
  staging_.give_back(std::move(staging));
  return result;
}

Result<uint64_t> CudaStore::digest(const std::byte* slot, size_t bytes) {
  return with_staging(0, [&](Staging& staging) { return digest_of(slot, bytes, staging); });
}

Result<uint64_t> CudaStore::fill(std::byte* slot, size_t bytes,
                                 const std::function<Status(std::byte*)>& pack) {
  const Place place = {.phase = Phase::load};
  return with_staging(bytes, [&](Staging& staging) -> Result<uint64_t> {
    MOE_RETURN_IF_ERROR(pack(staging.host));
    MOE_RETURN_IF_ERROR(
        check(cudaMemcpyAsync(slot, staging.host, bytes, cudaMemcpyHostToDevice, staging.stream),
              "copy an expert to the GPU", place));
    const uint64_t wanted = checksum(staging.host, bytes);  // while the copy is under way
    MOE_ASSIGN_OR_RETURN(const uint64_t there, digest_of(slot, bytes, staging));
    if (there == wanted) return there;
    return error(StatusCode::data_loss, place,
                 "{} bytes copied to cuda:{} came out different there; the GPU or its link is "
                 "faulty",
                 bytes, index_);
  });
}

bool CudaStore::generates(const ExpertGemm& gemm) const {
  return dynamic_cast<const GpuGemm*>(&gemm) != nullptr;
}

Result<uint64_t> CudaStore::generate(std::byte* slot, const ExpertSpec& spec,
                                     const GeneratedWeights& weights, int32_t layer,
                                     int32_t expert) {
  return with_staging(0, [&](Staging& staging) -> Result<uint64_t> {
    MOE_RETURN_IF_ERROR(generate_slot(spec, weights, layer, expert, slot, staging.stream));
    const auto bytes = static_cast<size_t>(slot_sections(slot_shape(spec)).bytes);
    return digest_of(slot, bytes, staging);
  });
}

Result<std::unique_ptr<DeviceCopy>> CudaStore::copy(const LayerSpec& spec,
                                                    const LayerBlock& block) {
  const DeviceScope scope(index_);
  return BlockCopy::make(spec, block, arena_, stream_);
}

Status CudaStore::write_cell(size_t layer, const std::byte* table) {
  static auto* const write =
      driver_function<decltype(cuStreamWriteValue64)>("cuStreamWriteValue64");
  if (!write) return check(cudaErrorInsufficientDriver, "find cuStreamWriteValue64");
  const CUresult result = write(stream_, reinterpret_cast<CUdeviceptr>(cells_ + layer),
                                reinterpret_cast<cuuint64_t>(table), CU_STREAM_WRITE_VALUE_DEFAULT);
  return result == CUDA_SUCCESS ? Status() : check(cudaErrorUnknown, "write a table's address");
}

Status CudaStore::publish(size_t layer, ExpertTable& table) {
  const DeviceScope scope(index_);
  const auto& block = static_cast<const BlockCopy&>(*table.block->copy);
  const std::vector<std::byte> image = table_image(table, block);
  MOE_ASSIGN_OR_RETURN(std::byte * data, arena_.take(image.size()));
  table.copy = std::make_unique<TableCopy>(arena_, data, image.size());
  MOE_RETURN_IF_ERROR(
      check(cudaMemcpyAsync(data, image.data(), image.size(), cudaMemcpyHostToDevice, stream_),
            "copy a table to the GPU", {.phase = Phase::publish}));
  return write_cell(layer, data).at({.phase = Phase::publish});
}

const DeviceTable* CudaStore::copy_of(const ExpertTable& table) {
  return static_cast<const TableCopy&>(*table.copy).table();
}

Status CudaStore::read_counters(const Clock& clock, int64_t end_ns) {
  const Place place = {.phase = Phase::publish};
  MOE_RETURN_IF_ERROR(check(cudaMemcpyAsync(seen_, counters_, kMostContexts * sizeof *seen_,
                                            cudaMemcpyDeviceToHost, stream_),
                            "read the counters of its readers", place));
  MOE_RETURN_IF_ERROR(check(cudaEventRecord(read_, stream_), "record an event", place));
  for (;;) {
    const cudaError_t result = cudaEventQuery(read_);
    if (result == cudaSuccess) return {};
    if (result != cudaErrorNotReady)
      return check(result, "read the counters of its readers", place);
    if (clock.now_ns() > end_ns)
      return error(StatusCode::deadline_exceeded, place, "cuda:{} did not answer in time", index_);
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

Status CudaStore::wait_for_grace(const Clock& clock, int64_t end_ns) {
  const DeviceScope scope(index_);
  std::lock_guard lock(grace_mutex_);
  MOE_RETURN_IF_ERROR(read_counters(clock, end_ns));
  const std::vector<EpochCounters> first(seen_, seen_ + kMostContexts);
  for (;;) {
    int64_t inside = 0;
    for (size_t i = 0; i < first.size(); ++i) inside += seen_[i].exited < first[i].entered;
    if (inside == 0) return {};
    if (clock.now_ns() > end_ns)
      return error(StatusCode::deadline_exceeded, {.phase = Phase::publish},
                   "{} context(s) on cuda:{} still use an older table", inside, index_);
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    MOE_RETURN_IF_ERROR(read_counters(clock, end_ns));
  }
}

Result<EpochCounters*> CudaStore::add_reader() {
  std::lock_guard lock(readers_mutex_);
  const auto free = std::find(reader_taken_.begin(), reader_taken_.end(), false);
  if (free == reader_taken_.end())
    return error(StatusCode::resource_exhausted, {},
                 "this store has {} contexts on cuda:{}, the most; destroy one", kMostContexts,
                 index_);
  *free = true;
  return counters_ + (free - reader_taken_.begin());
}

void CudaStore::remove_reader(EpochCounters* reader) {
  std::lock_guard lock(readers_mutex_);
  reader_taken_[static_cast<size_t>(reader - counters_)] = false;
}

}  // namespace moe::cuda

namespace moe {

Result<std::unique_ptr<StoreDevice>> open_cuda_store(int32_t index, size_t layers,
                                                     const Services& services) {
  MOE_ASSIGN_OR_RETURN(auto store, cuda::CudaStore::open(index, layers, services));
  return std::unique_ptr<StoreDevice>(std::move(store));
}

}  // namespace moe
