// Digests beside the weights: moe.manifest.json of a repacked folder. Whatever is read and wholly
// covers a part that has a digest is held against it.
//
//   {"schema_version": 1, "xxh3": {"tensor": "0f..16 digits 3a.."}}
//
// n digests are those of n equal parts of the tensor: one per expert where it holds all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/checkpoint.h"

namespace moe {

inline constexpr std::string_view kManifestName = "moe.manifest.json";

// Immutable once read. Safe for concurrent use.
class Manifest {
 public:
  // That of the folder, or an empty one where there is none. invalid_argument if it is no manifest.
  static Result<Manifest> read(const std::string& directory);

  bool empty() const { return digests_.empty(); }

  // `bytes` are those of `tensor` from `offset` on. data_loss, with tensor and file, if a part that
  // lies in them does not have its digest.
  Status check(const Checkpoint::Tensor& tensor, uint64_t offset,
               std::span<const std::byte> bytes) const;

 private:
  std::map<std::string, std::vector<uint64_t>, std::less<>> digests_;
};

}  // namespace moe
