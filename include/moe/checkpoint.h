// A published checkpoint: a Hugging Face directory with config.json, one or many safetensors files
// and perhaps an index. Opening reads headers only; weights are read, with pread, when asked for.
// Nothing is ever written into the directory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/export.h"
#include "moe/host.h"
#include "moe/weights.h"

namespace moe {

// What a host may set when it opens a checkpoint.
struct CheckpointOptions {
  // Weights are read past the page cache where the file system allows (O_DIRECT): for a store that
  // pages, whose slots are the cache. Without it what was read once may be read faster next time.
  bool direct_io = true;

  LogSink* log = nullptr;  // receives notes, such as a stray shard that the index does not name
};

// Movable. Safe for concurrent use after open().
class MOE_API Checkpoint final : public WeightSource {
 public:
  // A complete checkpoint, or the reason why it is not one: every missing shard and tensor is
  // named. Formats that no backend serves are refused here with their name (unimplemented).
  static Result<Checkpoint> open(std::string_view directory, const CheckpointOptions& options = {});

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint() override;

  std::string_view family() const noexcept;     // config.json's model_type, "qwen3_moe"
  std::string_view directory() const noexcept;  // as given to open()
  int64_t parameter_bytes() const noexcept;     // of all tensors in all files

  // Every tensor of every file, sorted by name. Views into the checkpoint.
  struct Tensor {
    std::string_view name;  // unique in the checkpoint
    std::string_view file;  // bare file name
    DType dtype;            // as stored
    Dims shape;             // rank -1: more than kMaxRank axes, or too large for int64
    uint64_t offset;        // of the first byte, from the start of the file
    uint64_t bytes;         // of its elements, in the file
  };
  const std::vector<Tensor>& tensors() const noexcept;  // constant

  // The tensor named `name`, or not_found with the nearest name.
  Result<Tensor> find(std::string_view name) const;

  // Copies a whole tensor, as stored. `out` must hold exactly its bytes.
  Status read_raw(const Tensor& tensor, void* out) const;

  const std::vector<LayerSpec>& layers() const noexcept override;
  Result<TensorShape> describe(const WeightId& id) const override;
  Status read(const WeightId& id, const MutableTensorView& out) const override;
  Status read_all(std::span<const WeightRead> reads) const override;
  std::string_view name() const noexcept override { return directory(); }

  struct Impl;
  Impl* impl() const noexcept { return impl_.get(); }  // used by the library alone

 private:
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Writes the checkpoint `from` into a new folder `to`, still a Hugging Face folder that anybody
// reads, so that an expert is read in one piece: its tensors lie side by side, the first at a
// multiple of 4 KiB (tensors called moe.pad.{n} fill the gaps); a tensor that holds all experts
// stays one and begins at such a multiple. moe.manifest.json has digests, which Checkpoint holds
// against what it reads. Other files are copied; `from` is not touched. `to` must not exist
// (already_exists) nor lie in `from`; it appears complete or not at all, also after a crash.
MOE_API Status repack(std::string_view from, std::string_view to, Progress progress = nullptr,
                      void* argument = nullptr);

// A model that needs no download: any shape, in any family's layout. Every weight is a pure
// function of (seed, tensor name, element index), so that a GPU can make the same one.
struct SyntheticSpec {
  std::string_view family = "qwen3_moe";  // a model_type of the family table
  int32_t layers = 2;                     // MoE layers; a synthetic model has no others
  int32_t experts = 8;                    // of each layer
  int32_t top_k = 2;                      // experts of a row
  int64_t hidden = 64;                    // elements of a row
  int64_t intermediate = 48;              // of one expert
  int64_t shared_intermediate = 0;  // 0: what the family's preset has, if it has shared experts
  // Of every tensor; f8_e4m3: of the experts' matrices, with a scale per 128 x 128 block, and bf16
  // for the rest.
  DType dtype = DType::bf16;
  uint64_t seed = 0;                       // of every weight
  int64_t shard_bytes = int64_t{5} << 30;  // most bytes of one safetensors file
};

// The synthetic spec of a published model ("mixtral-8x7b", "deepseek-v3", ...), or not_found with
// the list of names.
MOE_API Result<SyntheticSpec> synthetic_like(std::string_view model);
// The names that synthetic_like() knows.
MOE_API std::vector<std::string_view> synthetic_models();

// Writes a synthetic checkpoint into `directory` (created; must not hold a config.json yet). Only
// MoE tensors are written. Files appear complete or not at all.
MOE_API Status write_synthetic(const SyntheticSpec& spec, std::string_view directory,
                               Progress progress = nullptr, void* argument = nullptr);

// The same weights without a file: what write_synthetic() would write, computed when read.
MOE_API Result<std::unique_ptr<WeightSource>> make_synthetic(const SyntheticSpec& spec);

// A tensor to be written. `data` is dense, row-major, on the CPU.
struct NamedTensor {
  std::string name;  // unique in its file
  TensorView view;   // borrowed until the call returns
};

// Writes one safetensors file (temporary file, then rename): sorted as the reference writer does,
// header padded to 8 bytes.
MOE_API Status write_safetensors(std::string_view path, const std::vector<NamedTensor>& tensors);

// Reads one safetensors file's table of contents and tensors; used for inputs and outputs of tools.
class MOE_API TensorFile {
 public:
  // Reads and checks the header as Checkpoint::open() does.
  static Result<TensorFile> open(std::string_view path);
  TensorFile(TensorFile&&) noexcept;
  TensorFile& operator=(TensorFile&&) noexcept;
  ~TensorFile();

  const std::vector<Checkpoint::Tensor>& tensors() const noexcept;  // in file order
  // Copies a whole tensor, as stored. `out` must hold exactly its bytes.
  Status read(const Checkpoint::Tensor& tensor, void* out) const;

 private:
  struct Impl;
  explicit TensorFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
