// The header of one safetensors file:
//
//   u64 LE n | n bytes of JSON, padded with spaces | data
//   {"__metadata__": {"k": "v"}, "name": {"dtype": "BF16", "shape": [2,3], "data_offsets": [0,12]}}
//
// Accepts what the reference implementation accepts (huggingface/safetensors, tensor.rs), and is
// stricter where the format's text is: the JSON begins with '{', and no key appears twice.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "moe/checkpoint.h"

namespace moe {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  // bytes of JSON

struct SafetensorsHeader {
  std::unique_ptr<char[]> json;  // the names of `tensors` lie in here
  std::vector<Checkpoint::Tensor>
      tensors;  // in the order of their bytes; their data tiles the file
};

// Reads and checks the header; touches no data. `name` becomes Tensor::file and must outlive the
// result. A refusal names file, tensor and, in brackets, the rule that was broken. The memory used
// is bounded by the header's size, and the header's size by the file's.
Result<SafetensorsHeader> read_safetensors_header(const File& file, std::string_view name);

}  // namespace moe
