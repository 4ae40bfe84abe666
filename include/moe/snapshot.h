// What a store has learnt, kept in a file, so that a restarted process goes on where the last one
// stopped: the same versions serve, the same experts are resident, the same ones leave next. The
// weights stay where they are; a snapshot holds digests of them, and whoever restores is told if a
// source now has others.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe/export.h"
#include "moe/status.h"

namespace moe {

class ExpertStore;

// Writes down which versions serve which experts (candidates, shares and what rollback() returns to
// included), who is resident, how often each expert was used, and what the eviction policies
// remember. The file appears complete or not at all: after a crash at any moment `path` is the old
// file or the new one. Forwards go on meanwhile; none waits for the disk. While a reload works, the
// snapshot has what serves at that moment. Not in it: counters, and what prefetching has learnt.
// Stores on the CPU.
//
// ExpertStoreOptions::restore opens a store from it. Whoever keeps a version for rollback() needs
// its source then too; forget_previous() spares that.
MOE_API Status save_snapshot(const ExpertStore& store, const std::string& path);

// A version that a snapshot names.
struct SnapshotVersion {
  uint32_t version = 0;  // as ExpertStore::versions() says
  std::string source;    // the name of its weights' source

  friend bool operator==(const SnapshotVersion&, const SnapshotVersion&) = default;
};

// Which sources whoever opens a store from the snapshot at `path` needs, ascending in version.
// not_found: there is no such file. invalid_argument: it is no snapshot. unimplemented: one of a
// later format. data_loss: it was cut short or damaged.
MOE_API Result<std::vector<SnapshotVersion>> snapshot_versions(const std::string& path);

}  // namespace moe
