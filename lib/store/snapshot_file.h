// What a store had learnt, as a file: who was resident, what the policies remember, how often each
// expert was used. JSON, whose last member is the XXH3 digest of all bytes before it:
//
//   {"format":"moe-store-1","source":"olmoe",
//    "layers":[{"layer":0,"layout":"cpu","bytes":4096,"uses":[9,0,2]}],
//    "residents":[[0,2,1,"07c1..16 digits"]],                    layer, expert, version, digest
//    "policies":[{"name":"lfu","layers":[0],"memory":{"uses":[9,0,2]}}],
//    "digest":"0f3a..16 digits"}
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/new_file.h"
#include "moe/eviction.h"

namespace moe {

// Plain data.
struct StoreSnapshot {
  struct Layer {
    int32_t layer = -1;
    std::string layout;         // of its slots
    int64_t bytes = 0;          // of one packed expert
    std::vector<int64_t> uses;  // (experts)

    friend bool operator==(const Layer&, const Layer&) = default;
  };
  struct Resident {
    ExpertId id;
    uint32_t version = 0;
    uint64_t digest = 0;  // XXH3 over the packed bytes

    friend bool operator==(const Resident&, const Resident&) = default;
  };
  // Of the slots of one size.
  struct Policy {
    std::string name;
    std::vector<int32_t> layers;
    PolicyMemory memory;

    friend bool operator==(const Policy&, const Policy&) = default;
  };

  std::string source;               // its name, for messages
  std::vector<Layer> layers;        // ascending
  std::vector<Resident> residents;  // ascending
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
