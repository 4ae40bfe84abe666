// Writes a checkpoint folder made from another one: shards that are series of runs, an index,
// digests, and copies of all other files.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint_impl.h"
#include "core/new_file.h"

namespace moe {

struct NewTensor {
  std::string name;
  DType dtype = DType::u8;
  Dims shape;
  uint64_t bytes = 0;
  uint64_t digests = 0;  // equal parts of the tensor that get one each; 0: none

  const Checkpoint::Tensor* copied = nullptr;  // whence; null: made, or a pad of zeros
  int64_t key = -1;                            // of one that is made: the maker's business
};

inline NewTensor copy_of(const Checkpoint::Tensor& tensor, uint64_t digests = 0) {
  return {std::string(tensor.name), tensor.dtype, tensor.shape, tensor.bytes, digests, &tensor};
}

// Tensors side by side, those of the widest elements first: each lies at a multiple of its element,
// which PyTorch asks for. A run whose first tensor has digests begins at a multiple of 4 KiB.
using TensorRun = std::vector<NewTensor>;

struct NewCheckpoint {
  const Checkpoint::Impl& from;
  const char* what;  // is done, for messages: "repacking"
  std::vector<TensorRun> runs = {};
  // The bytes of a tensor that is made; asked for run by run.
  std::function<Status(const NewTensor& tensor, std::string* bytes)> make = {};
  std::string config = {};                // config.json's text; empty: copied
  std::vector<std::string> dropped = {};  // other files that are not copied
  FileCalls* calls = nullptr;             // null: the system's
};

// `to` must not exist (already_exists) nor lie in made.from; it appears complete or not at all.
Status write_checkpoint(const NewCheckpoint& made, std::string_view to, Progress progress,
                        void* argument);

}  // namespace moe
