// Slots, tables and counters of readers in the memory of one GPU.
//
// Each layer has a cell in device memory that points to its newest table. To publish is to write a
// new table and then the cell, both on a stream of ours; to wait for grace is to copy the counters
// of all contexts back on that stream until every exit has reached the enters seen first. A
// context's first kernel adds to `entered`, fences, and only then reads the cell; so either the
// reclaimer sees the enter and waits, or that forward sees the new table. Nothing of this goes
// through the host's forward(), so replays of captured graphs take part.
#pragma once

#include <mutex>
#include <vector>

#include <cuda_runtime_api.h>

#include "runtime/scope.h"
#include "store/arena.h"
#include "store/device.h"
#include "store/staging.h"
#include "store/table.h"

namespace moe::cuda {

class CudaStore final : public StoreDevice {
 public:
  static constexpr int32_t kMostContexts = 1024;

  static Result<std::unique_ptr<CudaStore>> open(int32_t index, size_t layers,
                                                 const Services& services);
  ~CudaStore() override;

  Allocator& memory() override { return memory_; }
  size_t free_bytes() const override { return cuda::free_bytes(index_); }
  Result<uint64_t> digest(const std::byte* slot, size_t bytes) override;
  Result<uint64_t> fill(std::byte* slot, size_t bytes,
                        const std::function<Status(std::byte*)>& pack) override;
  bool generates(const ExpertGemm& gemm) const override;
  Result<uint64_t> generate(std::byte* slot, const ExpertSpec& spec,
                            const GeneratedWeights& weights, int32_t layer,
                            int32_t expert) override;
  bool moves() const override;
  Result<std::unique_ptr<DeviceRange>> reserve(size_t bytes) override;
  Result<std::unique_ptr<DeviceCopy>> copy(const LayerSpec& spec, const LayerBlock& block) override;
  Status publish(size_t layer, ExpertTable& table) override;
  Status wait_for_grace(const Clock& clock, int64_t end_ns) override;

  int32_t index() const { return index_; }
  // Where kernels find the newest table of a layer.
  const DeviceTable* const* cell(size_t layer) const { return cells_ + layer; }
  // A published table's copy.
  static const DeviceTable* copy_of(const ExpertTable& table);
  // Counters of one more context, and their end. resource_exhausted beyond kMostContexts.
  Result<EpochCounters*> add_reader();
  void remove_reader(EpochCounters* reader);

  // Of device memory, complete when they return.
  Status clear(void* to, size_t bytes);
  Status read(const void* from, void* to, size_t bytes);

 private:
  CudaStore(int32_t index, const Services& services);
  Status start(size_t layers);
  Result<uint64_t> with_staging(size_t bytes,
                                const std::function<Result<uint64_t>(Staging&)>& work);
  Status write_cell(size_t layer, const std::byte* table);
  Status read_counters(const Clock& clock, int64_t end_ns);

  int32_t index_;
  DeviceMemory own_memory_;
  Allocator& memory_;
  Arena arena_;
  StagingPool staging_;
  cudaStream_t stream_ = nullptr;  // of publications and reads of counters
  cudaEvent_t read_ = nullptr;

  std::byte* fixed_ = nullptr;  // device memory of what follows
  size_t fixed_bytes_ = 0;
  const DeviceTable** cells_ = nullptr;  // (layers)
  EpochCounters* counters_ = nullptr;    // (kMostContexts)

  std::mutex readers_mutex_;
  std::vector<bool> reader_taken_;

  std::mutex grace_mutex_;
  EpochCounters* seen_ = nullptr;  // (kMostContexts), pinned
};

}  // namespace moe::cuda
