// What a store knows, as a file: which versions serve, who is resident, what the policies remember,
// how often each expert was used, and digests of all bytes that were read. JSON, whose last member
// is the XXH3 digest of all bytes before it:
//
//   {"format":"moe-store-1","versions":[{"version":1,"source":"olmoe"}],"newest":1,"share":0,
//    "layers":[{"layer":0,"layout":"cpu","bytes":4096,"uses":[9,0,2],
//               "serving":{"router":1,"digest":"07c1..16 digits","experts":[1,1,1]}}],
//                                               also "candidate" and "previous", where there is one
//    "experts":[[0,2,1,"07c1..16 digits",true]],       layer, expert, version, digest, resident
//    "policies":[{"name":"lfu","layers":[0],"memory":{"uses":[9,0,2]}}],
//    "digest":"0f3a..16 digits"}
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/new_file.h"
#include "moe/eviction.h"
#include "moe/snapshot.h"

namespace moe {

// Plain data.
struct StoreSnapshot {
  // What serves rows of a layer together.
  struct Table {
    uint32_t router = 0;            // version of the router and the shared expert
    uint64_t digest = 0;            // XXH3 over the router's tensors; 0: not known
    std::vector<uint32_t> experts;  // versions, by logical expert

    friend bool operator==(const Table&, const Table&) = default;
  };
  struct Layer {
    int32_t layer = -1;
    std::string layout;         // of its slots
    int64_t bytes = 0;          // of one packed expert
    std::vector<int64_t> uses;  // (experts)
    Table serving;
    std::optional<Table> candidate, previous;

    friend bool operator==(const Layer&, const Layer&) = default;
  };
  // Whose bytes are known.
  struct Expert {
    ExpertId id;  // kSharedExpert: the shared one
    uint32_t version = 0;
    uint64_t digest = 0;  // XXH3 over the packed bytes
    bool resident = false;

    friend bool operator==(const Expert&, const Expert&) = default;
  };
  // Of the slots of one size.
  struct Policy {
    std::string name;
    std::vector<int32_t> layers;
    PolicyMemory memory;

    friend bool operator==(const Policy&, const Policy&) = default;
  };

  std::vector<SnapshotVersion> versions;  // ascending; of all tables
  uint32_t newest = 1;                    // the next version gets a higher number
  double share = 0;                       // of the candidates
  std::vector<Layer> layers;              // ascending
  std::vector<Expert> experts;            // ascending in version, layer, expert
  std::vector<Policy> policies;

  friend bool operator==(const StoreSnapshot&, const StoreSnapshot&) = default;
};

// The file appears complete or not at all. `calls` as for NewFile.
Status write_snapshot(const StoreSnapshot& snapshot, const std::string& path,
                      FileCalls* calls = nullptr);

// invalid_argument: no snapshot. unimplemented: one of a later format. data_loss: cut short, or not
// what was written.
Result<StoreSnapshot> read_snapshot(const std::string& path);

}  // namespace moe
