// The head of a safetensors file that is about to be written.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "moe/status.h"
#include "moe/tensor.h"

namespace moe {

struct SafetensorsEntry {
  std::string_view name;
  DType dtype = DType::f32;
  Dims shape;
};

// Bytes of the entry's data, or invalid_argument if there is no such tensor: a negative or
// overflowing shape, or sub-byte elements that do not fill their last byte.
Result<uint64_t> data_bytes(const SafetensorsEntry& entry);

// Length and header for tensors whose data will follow without gaps in this order; the data begins
// at a multiple of `alignment`, itself one of 8. `format`, unless empty, is what transformers asks
// "__metadata__" for ("pt"). Names must be UTF-8, distinct and not "__metadata__".
Result<std::string> safetensors_head(const std::vector<SafetensorsEntry>& entries,
                                     std::string_view format = {}, uint64_t alignment = 8);

}  // namespace moe
