#include "checkpoint/shards.h"

#include <system_error>

#include <fmt/format.h>

#include "core/error.h"
#include "core/json.h"

namespace moe {

namespace fs = std::filesystem;

std::string shard_name(size_t index, size_t count) {
  return count == 1 ? "model.safetensors"
                    : fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, count);
}

std::string shard_index(int64_t bytes, std::span<const PlacedName> tensors) {
  JsonWriter json;
  json.begin_object();
  json.key("metadata").begin_object().key("total_size").value(bytes).end_object();
  json.key("weight_map").begin_object();
  for (const auto& [tensor, shard] : tensors) json.key(tensor).value(shard);
  json.end_object().end_object();
  return json.text();
}

Status check_space(const fs::path& folder, int64_t bytes) {
  std::error_code failed;
  const fs::space_info space = fs::space(folder, failed);
  if (failed || space.available >= static_cast<uint64_t>(bytes)) return {};
  return error(StatusCode::resource_exhausted, {.file = folder.native()},
               "{} has {} bytes free, but the model needs {}", folder.string(), space.available,
               bytes);
}

Status write_text(const fs::path& path, std::string_view text, FileCalls* calls) {
  MOE_ASSIGN_OR_RETURN(NewFile file, NewFile::create(path.string(), calls));
  MOE_RETURN_IF_ERROR(file.write(text));
  return file.commit();
}

}  // namespace moe
