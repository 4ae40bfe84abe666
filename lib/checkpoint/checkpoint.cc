#include "moe/checkpoint.h"

#include <algorithm>
#include <filesystem>
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

Status refuse_quantized(std::string_view file, const Json& config) {
  return error(StatusCode::unimplemented, {.file = file, .phase = Phase::open},
               "the checkpoint is quantised as {} (says {}), which is not supported yet; use the "
               "bf16, f16 or f32 version of the model",
               quantization_name(config), file);
}

// Formats that are named in a file of their own.
Status check_modelopt(const std::string& directory) {
  const std::string path = directory + "/hf_quant_config.json";
  if (!std::filesystem::exists(path)) return {};
  MOE_ASSIGN_OR_RETURN(const Json config, Json::read(path));
  return refuse_quantized("hf_quant_config.json", config);
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
  return guarded({.file = directory, .phase = Phase::open}, [&]() -> Result<Checkpoint> {
    const std::string path(directory);
    MOE_ASSIGN_OR_RETURN(ModelConfig config, read_config(path));
    MOE_ASSIGN_OR_RETURN(const ModelLayers model, model_layers(config));
    if (const Json* quantization = config.quantization())
      return refuse_quantized("config.json", *quantization);
    MOE_RETURN_IF_ERROR(check_modelopt(path));
    MOE_ASSIGN_OR_RETURN(TensorDirectory files, TensorDirectory::open(path, options.log));
    MOE_ASSIGN_OR_RETURN(std::vector<LayerTensors> layers,
                         resolve_layers(*model.family, model.layers, files));
    MOE_ASSIGN_OR_RETURN(Manifest manifest, Manifest::read(path));
    return Checkpoint(std::make_unique<Impl>(path, config.model_type(), std::move(files),
                                             std::move(layers), std::move(manifest),
                                             options.direct_io));
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
