#include "checkpoint/write_safetensors.h"

#include <algorithm>
#include <numeric>
#include <unordered_set>
#include <utility>

#include <simdjson.h>

#include "checkpoint/safetensors.h"
#include "core/error.h"
#include "core/json.h"
#include "core/new_file.h"
#include "moe/checkpoint.h"

namespace moe {
namespace {

Status refuse(std::string_view name, std::string_view what) {
  return invalid_argument({.tensor = name}, "tensor {}: {}; nothing was written", json_quoted(name),
                          what);
}

Status check_name(std::string_view name) {
  if (name == "__metadata__") return refuse(name, "safetensors keeps this name for itself");
  if (!simdjson::validate_utf8(name.data(), name.size())) return refuse(name, "not UTF-8");
  return {};
}

Status check_view(const NamedTensor& tensor) {
  const TensorView& view = tensor.view;
  if (view.device.kind != DeviceKind::cpu) return refuse(tensor.name, "its data is not on the CPU");
  if (!(view.strides == row_major(view.shape)))
    return refuse(tensor.name, "its strides are not dense and row-major; copy it first");
  if (!view.data && view.shape.elements() > 0) return refuse(tensor.name, "its data is null");
  return {};
}

// As the reference writer sorts: by type, widest first, then by name.
std::vector<const NamedTensor*> in_file_order(const std::vector<NamedTensor>& tensors) {
  std::vector<const NamedTensor*> order;
  order.reserve(tensors.size());
  for (const NamedTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return std::pair(b->view.dtype, std::string_view(a->name)) <
           std::pair(a->view.dtype, std::string_view(b->name));
  });
  return order;
}

}  // namespace

Result<uint64_t> data_bytes(const SafetensorsEntry& entry) {
  if (entry.shape.rank < 0 || entry.shape.rank > kMaxRank)
    return refuse(entry.name, fmt::format("it has {} axes; at most {} are supported",
                                          entry.shape.rank, kMaxRank));
  uint64_t bits = static_cast<uint64_t>(bits_of(entry.dtype));
  bool empty = false;
  for (int axis = 0; axis < entry.shape.rank; ++axis) {
    const int64_t extent = entry.shape[axis];
    if (extent < 0) return refuse(entry.name, fmt::format("axis {} is {}", axis, extent));
    empty |= extent == 0;
    if (extent > 0 && __builtin_mul_overflow(bits, static_cast<uint64_t>(extent), &bits))
      return refuse(entry.name, "its size does not fit into 64 bits");
  }
  if (empty) return uint64_t{0};
  if (bits % 8 != 0) return refuse(entry.name, "its elements do not fill a whole number of bytes");
  return bits / 8;
}

Result<std::string> safetensors_head(const std::vector<SafetensorsEntry>& entries,
                                     std::string_view format, uint64_t alignment) {
  JsonWriter json;
  json.begin_object();
  if (!format.empty())
    json.key("__metadata__").begin_object().key("format").value(format).end_object();
  std::unordered_set<std::string_view> names;
  uint64_t offset = 0;
  for (const SafetensorsEntry& entry : entries) {
    MOE_RETURN_IF_ERROR(check_name(entry.name));
    if (!names.insert(entry.name).second) return refuse(entry.name, "the name appears twice");
    MOE_ASSIGN_OR_RETURN(const uint64_t bytes, data_bytes(entry));
    json.key(entry.name).begin_object().key("dtype").value(to_safetensors(entry.dtype));
    json.key("shape").begin_array();
    for (int axis = 0; axis < entry.shape.rank; ++axis) json.value(entry.shape[axis]);
    json.end_array().key("data_offsets").begin_array().value(offset);
    if (__builtin_add_overflow(offset, bytes, &offset))
      return refuse(entry.name, "the file's size does not fit into 64 bits");
    json.value(offset).end_array().end_object();
  }
  json.end_object();

  const uint64_t length = (8 + json.text().size() + alignment - 1) / alignment * alignment - 8;
  if (length > kMaxSafetensorsHeader)
    return invalid_argument({},
                            "the header of {} tensors would take {} bytes; a safetensors file "
                            "allows {}: use more files",
                            entries.size(), length, kMaxSafetensorsHeader);
  std::string head;
  for (int byte = 0; byte < 8; ++byte) head += static_cast<char>(length >> 8 * byte);
  head += json.text();
  head.resize(8 + length, ' ');
  return head;
}

Status write_safetensors(std::string_view path, const std::vector<NamedTensor>& tensors) {
  const Place place{.file = path};
  return guarded(place, [&]() -> Status {
    const auto order = in_file_order(tensors);
    std::vector<SafetensorsEntry> entries;
    for (const NamedTensor* tensor : order) {
      entries.push_back({tensor->name, tensor->view.dtype, tensor->view.shape});
      MOE_RETURN_IF_ERROR(data_bytes(entries.back()).status().at(place));
      MOE_RETURN_IF_ERROR(check_view(*tensor).at(place));
    }
    auto head = safetensors_head(entries);
    if (!head.ok()) return head.status().at(place);
    MOE_ASSIGN_OR_RETURN(NewFile file, NewFile::create(std::string(path)));
    MOE_RETURN_IF_ERROR(file.write(*head));
    for (size_t i = 0; i < order.size(); ++i)
      MOE_RETURN_IF_ERROR(file.write(order[i]->view.data, *data_bytes(entries[i])));
    return file.commit();
  });
}

}  // namespace moe
