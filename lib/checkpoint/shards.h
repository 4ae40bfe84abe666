// What every writer of a checkpoint folder does around its tensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/new_file.h"

namespace moe {

// "model.safetensors" if it is the only one, "model-00002-of-00007.safetensors" otherwise.
std::string shard_name(size_t index, size_t count);

// A tensor's name, and that of the shard that holds it.
using PlacedName = std::pair<std::string_view, std::string_view>;

// The text of model.safetensors.index.json; `bytes` are those of all tensors.
std::string shard_index(int64_t bytes, std::span<const PlacedName> tensors);

// resource_exhausted if the file system of `folder` says that it has no room for `bytes`.
Status check_space(const std::filesystem::path& folder, int64_t bytes);

// A whole file. `calls` as for NewFile.
Status write_text(const std::filesystem::path& path, std::string_view text,
                  FileCalls* calls = nullptr);

}  // namespace moe
