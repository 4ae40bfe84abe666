// The tensors of a directory of safetensors files: one file, or shards with or without an index.
// Knows names, shapes and bytes, and nothing of what they mean.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/safetensors.h"
#include "core/batch_reader.h"
#include "moe/checkpoint.h"
#include "moe/host.h"

namespace moe {

// Movable. Safe for concurrent use after open().
class TensorDirectory {
 public:
  using Tensor = Checkpoint::Tensor;

  // Which files are read:
  //   model.safetensors.index.json   those it names; others are ignored, with a note to `log`
  //   model.safetensors              it alone
  //   x-00001-of-00003.safetensors   all of each such series
  //   *.safetensors                  all of them
  // Refused: a missing shard (all of them are named), a tensor in two files or not where the index
  // says, a file that read_safetensors_header() refuses, index entries that are not bare file
  // names. `log` may be null; it is not kept.
  static Result<TensorDirectory> open(std::string_view directory, LogSink* log,
                                      const OpenFile& open_file = moe::open_file);

  const std::string& path() const { return path_; }

  // Sorted by name. Views into this object, which survive its being moved.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  uint64_t bytes() const { return bytes_; }  // of all tensors

  // Null if there is no such tensor.
  const Tensor* find(std::string_view name) const;
  // not_found for `name`, with the nearest name there is.
  Status not_found(std::string_view name) const;

  // Where bytes [byte_offset, byte_offset + bytes) of a tensor of tensors() are. out_of_range
  // beyond its end.
  Result<FileRange> locate(const Tensor& tensor, uint64_t byte_offset, uint64_t bytes) const;

  // Copies bytes [byte_offset, byte_offset + bytes) of a tensor of tensors() to `out`.
  // out_of_range beyond its end; data_loss, failed_precondition or unavailable if the file became
  // shorter, was changed or cannot be read. Then `out` holds anything.
  Status read(const Tensor& tensor, uint64_t byte_offset, uint64_t bytes, void* out) const;

 private:
  struct Shard {
    std::string name;
    std::unique_ptr<File> file;
    std::unique_ptr<char[]> header;  // the tensors' names lie in here
  };
  friend class TensorDirectoryBuilder;

  std::string path_;
  std::vector<std::unique_ptr<Shard>> shards_;  // sorted by name
  std::vector<Tensor> tensors_;
  std::unordered_map<std::string_view, const Tensor*> by_name_;
  uint64_t bytes_ = 0;
};

}  // namespace moe
