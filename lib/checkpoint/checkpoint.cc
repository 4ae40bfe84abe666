#include "moe/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/checkpoint_impl.h"
#include "checkpoint/model_layers.h"
#include "checkpoint/quantized.h"
#include "checkpoint/read_parts.h"
#include "checkpoint/resolve.h"
#include "core/error.h"
#include "core/file.h"

namespace moe {

namespace {

// How the quantised modules are stored, by config.json or a file of its own; none: not quantised.
Result<std::optional<QuantScheme>> read_scheme(const ModelConfig& config,
                                               const std::string& directory) {
  if (const Json* quantization = config.quantization()) {
    MOE_ASSIGN_OR_RETURN(const QuantScheme scheme, quant_scheme(*quantization, "config.json"));
    return std::optional(scheme);
  }
  const std::string path = directory + "/hf_quant_config.json";
  if (!std::filesystem::exists(path)) return std::optional<QuantScheme>();
  MOE_ASSIGN_OR_RETURN(const Json quantization, Json::read(path));
  MOE_ASSIGN_OR_RETURN(const QuantScheme scheme,
                       quant_scheme(quantization, "hf_quant_config.json"));
  return std::optional(scheme);
}

Result<ModelConfig> read_config(const std::string& directory) {
  const std::string path = directory + "/config.json";
  MOE_ASSIGN_OR_RETURN(std::string text, read_text_file(path));
  return ModelConfig::parse(std::move(text), "config.json");
}

}  // namespace

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Result<Checkpoint> Checkpoint::open(std::string_view directory, const CheckpointOptions& options) {
  return Impl::open(directory, options, make_ring);
}

Result<Checkpoint> Checkpoint::Impl::open(std::string_view directory,
                                          const CheckpointOptions& options,
                                          BatchReader::MakeRing make_ring) {
  return guarded({.file = directory, .phase = Phase::open}, [&]() -> Result<Checkpoint> {
    const std::string path(directory);
    MOE_ASSIGN_OR_RETURN(ModelConfig config, read_config(path));
    MOE_ASSIGN_OR_RETURN(const ModelLayers model, model_layers(config));
    MOE_ASSIGN_OR_RETURN(const std::optional<QuantScheme> quantized, read_scheme(config, path));
    MOE_ASSIGN_OR_RETURN(TensorDirectory files, TensorDirectory::open(path, options.log));
    MOE_ASSIGN_OR_RETURN(std::vector<LayerTensors> layers,
                         resolve_layers(*model.family, model.layers, files, quantized));
    MOE_ASSIGN_OR_RETURN(Manifest manifest, Manifest::read(path));
    return Checkpoint(std::make_unique<Impl>(path, config.model_type(), std::move(files),
                                             std::move(layers), std::move(manifest),
                                             options.direct_io, make_ring));
  });
}

std::string_view Checkpoint::family() const noexcept { return impl_->family; }
std::string_view Checkpoint::directory() const noexcept { return impl_->directory; }

int64_t Checkpoint::parameter_bytes() const noexcept {
  uint64_t bytes = 0;
  for (const Tensor& tensor : tensors()) bytes += tensor.bytes;
  return static_cast<int64_t>(bytes);
}

const std::vector<Checkpoint::Tensor>& Checkpoint::tensors() const noexcept {
  return impl_->files.tensors();
}

Result<Checkpoint::Tensor> Checkpoint::find(std::string_view name) const {
  if (const Tensor* tensor = impl_->files.find(name)) return *tensor;
  return guarded({.tensor = name},
                 [&]() -> Result<Tensor> { return impl_->files.not_found(name); });
}

Status Checkpoint::read_raw(const Tensor& tensor, void* out) const {
  return guarded({.file = tensor.file, .tensor = tensor.name, .phase = Phase::load},
                 [&] { return impl_->files.read(tensor, 0, tensor.bytes, out); });
}

const std::vector<LayerSpec>& Checkpoint::layers() const noexcept { return impl_->layers.specs(); }

Result<TensorShape> Checkpoint::describe(const WeightId& id) const {
  return guarded({.layer = id.layer}, [&]() -> Result<TensorShape> {
    MOE_ASSIGN_OR_RETURN(const LayerSet::Found found, impl_->layers.find(id));
    if (found.name.empty()) return stored_shape(found.slice, found.zeros(), {});
    const Tensor& tensor = *impl_->files.find(found.name);
    return stored_shape(found.slice, tensor.dtype, tensor.shape);
  });
}

Status Checkpoint::read(const WeightId& id, const MutableTensorView& out) const {
  const WeightRead one{id, out};
  return read_all({&one, 1});
}

Status Checkpoint::read_all(std::span<const WeightRead> reads) const {
  const int32_t layer = reads.empty() ? -1 : reads[0].id.layer;
  return guarded({.layer = layer, .phase = Phase::load}, [&] { return read_parts(*impl_, reads); });
}

}  // namespace moe
