// What a wave needs to know about one layer: which slot serves each expert, and the router weights
// and shared expert of the same version. Small, immutable once published.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "store/layer_block.h"

namespace moe {

// Weights from one source. As long as somebody holds it, its source is read.
struct Version {
  Version(uint32_t n, const WeightSource& s) : number(n), source(s) {}

  // XXH3 of the packed bytes; 0 before they were read for the first time. Later reads must give the
  // same. With the store's mutex.
  uint64_t& digest(size_t layer, int32_t expert) {
    return digests[layer][static_cast<size_t>(expert + 1)];
  }

  uint32_t number;
  const WeightSource& source;
  std::atomic<bool> check_finite{false};
  std::vector<std::vector<uint64_t>> digests;  // (layers, 1 + experts): the shared one first
};

// How many forwards hold something. A copy of it begins with none.
struct Holders {
  Holders() = default;
  Holders(const Holders&) {}
  Holders& operator=(const Holders&) = delete;
  mutable std::atomic<int64_t> count{0};
};

// The versions that serve a layer's rows together. Immutable.
struct LayerVersions {
  std::shared_ptr<const LayerBlock> block;
  std::vector<uint32_t> experts;                  // by logical expert
  std::vector<std::shared_ptr<Version>> sources;  // of all of them; keeps them readable
  Holders holders;
};

// Held by a forward that goes on after it left the epoch whose table named the versions: until it
// ends, they have their sources and their shared expert.
class VersionsHold {
 public:
  VersionsHold() = default;
  ~VersionsHold() {
    if (versions_) versions_->holders.count.fetch_sub(1, std::memory_order_release);
  }
  VersionsHold(const VersionsHold&) = delete;
  VersionsHold& operator=(const VersionsHold&) = delete;

  // Once, inside an epoch whose table names them (or with the store's mutex); null is fine.
  void hold(const std::shared_ptr<const LayerVersions>& versions) {
    versions_ = versions;
    if (versions_) versions_->holders.count.fetch_add(1, std::memory_order_relaxed);
  }

 private:
  std::shared_ptr<const LayerVersions> versions_;
};

// A ready copy of one expert.
struct TableCopy {
  const std::byte* slot = nullptr;  // null: no ready copy
  int64_t slot_index = -1;
  uint32_t version = 0;
};

// What serves some of the rows.
struct Serving {
  std::shared_ptr<const LayerVersions> versions;
  std::shared_ptr<const LayerBlock> block;  // versions->block
  std::vector<TableCopy> experts;           // by logical expert
};

// The table itself serves the rows that no candidate takes.
struct ExpertTable : Serving {
  size_t layer = 0;  // among the store's
  uint64_t epoch = 0;
  bool resident = false;             // every expert has a ready copy, and none will be evicted
  double share = 0;                  // of requests that the candidate serves; 0: there is none
  Serving candidate;                 // a version that is being tried
  std::unique_ptr<DeviceCopy> copy;  // null on the CPU
};

}  // namespace moe
