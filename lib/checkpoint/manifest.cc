#include "checkpoint/manifest.h"

#include <charconv>
#include <filesystem>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/error.h"
#include "core/json.h"

namespace moe {
namespace {

// The digests of one tensor; false if `text` is not one or more of them.
bool parse(std::string_view text, std::vector<uint64_t>* digests) {
  constexpr size_t kDigits = 16;
  for (;; text.remove_prefix(kDigits + 1)) {
    uint64_t digest = 0;
    if (text.size() < kDigits) return false;
    const char* const end = text.data() + kDigits;
    if (std::from_chars(text.data(), end, digest, 16).ptr != end) return false;
    digests->push_back(digest);
    if (text.size() == kDigits) return true;
    if (text[kDigits] != ' ') return false;
  }
}

}  // namespace

Result<Manifest> Manifest::read(const std::string& directory) {
  const std::string path = directory + "/" + std::string(kManifestName);
  const Place place{.file = path, .phase = Phase::open};
  Manifest manifest;
  std::error_code unknown;
  if (!std::filesystem::exists(path, unknown)) return manifest;
  MOE_ASSIGN_OR_RETURN(const Json json, Json::read(path));
  const Json* all = json.find("xxh3");
  const auto version = json.integer("schema_version", 0);
  if (!all || !all->is_object() || !version.ok() || *version != 1)
    return invalid_argument(place,
                            "{}: no manifest of schema_version 1 with an object \"xxh3\"; repack "
                            "the folder again, or remove the file to read without it",
                            path);
  for (const auto& [tensor, value] : all->members()) {
    std::vector<uint64_t> digests;
    if (!value.string() || !parse(*value.string(), &digests))
      return invalid_argument({.file = path, .tensor = tensor, .phase = Phase::open},
                              "{}: tensor {}: wanted digests of 16 hexadecimal digits with spaces "
                              "between them; repack the folder again, or remove the file",
                              path, json_quoted(tensor));
    manifest.digests_.emplace(tensor, std::move(digests));
  }
  return manifest;
}

Status Manifest::check(const Checkpoint::Tensor& tensor, uint64_t offset,
                       std::span<const std::byte> bytes) const {
  const auto found = digests_.find(tensor.name);
  if (found == digests_.end() || tensor.bytes == 0) return {};
  const std::vector<uint64_t>& digests = found->second;
  const Place place{.file = tensor.file, .tensor = tensor.name, .phase = Phase::load};
  const uint64_t part = tensor.bytes / digests.size();
  if (part * digests.size() != tensor.bytes)
    return error(StatusCode::data_loss, place,
                 "{}: the manifest has {} digests, which do not divide its {} bytes; the file or "
                 "{} belongs to another model",
                 tensor.name, digests.size(), tensor.bytes, kManifestName);
  for (uint64_t i = (offset + part - 1) / part; (i + 1) * part <= offset + bytes.size(); ++i) {
    const uint64_t digest = XXH3_64bits(bytes.data() + (i * part - offset), part);
    if (digest != digests[i])
      return error(StatusCode::data_loss, place,
                   "{} in {}: part {} of {} has digest {:016x}, but the manifest says {:016x}: the "
                   "file was damaged or changed; repack the model again",
                   tensor.name, tensor.file, i, digests.size(), digest, digests[i]);
  }
  return {};
}

}  // namespace moe
