// moe run --input: tensors of a file through the layers that their names say.
#include <charconv>
#include <map>

#include <fmt/format.h>

#include "batch.h"
#include "json.h"
#include "run.h"
#include "terminal.h"

namespace moe::cli {
namespace {

// The i of "layers.{i}.{name}", or -1.
int32_t layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "layers.";
  if (!name.starts_with(kPrefix)) return -1;
  name.remove_prefix(kPrefix.size());
  int32_t layer = -1;
  const auto parsed = std::from_chars(name.data(), name.data() + name.size(), layer);
  const bool more = parsed.ptr + 1 < name.data() + name.size() && *parsed.ptr == '.';
  return parsed.ec == std::errc() && layer >= 0 && more ? layer : -1;
}

// Why `tensor` is not a batch of rows for `spec`; "" if it is one.
std::string misfit(const Checkpoint::Tensor& tensor, const LayerSpec& spec) {
  if (tensor.dtype != DType::f32 && tensor.dtype != DType::bf16 && tensor.dtype != DType::f16)
    return fmt::format("{} is not f32, bf16 or f16", to_string(tensor.dtype));
  if (tensor.shape.rank != 2 || tensor.shape[1] != spec.hidden())
    return fmt::format("its shape is not (rows, {})", spec.hidden());
  return {};
}

// Tensor `{name}.token_ids`, if the file has it: layers that look experts up need it.
Status read_token_ids(const TensorFile& file, Batch& batch) {
  for (const Checkpoint::Tensor& tensor : file.tensors()) {
    if (tensor.name != batch.name + ".token_ids") continue;
    if (tensor.dtype != DType::i64 || tensor.shape != Dims{batch.rows})
      return Status(StatusCode::invalid_argument, fmt::format("wanted I64 ({})", batch.rows),
                    {.tensor = tensor.name});
    batch.token_ids.resize(static_cast<size_t>(batch.rows));
    return file.read(tensor, batch.token_ids.data());
  }
  return {};
}

Result<Batch> read_batch(const TensorFile& file, const Checkpoint::Tensor& tensor) {
  Batch batch{.name = std::string(tensor.name),
              .rows = tensor.shape[0],
              .hidden_size = tensor.shape[1],
              .dtype = tensor.dtype};
  batch.hidden.resize(tensor.bytes);
  if (Status status = file.read(tensor, batch.hidden.data()); !status.ok()) return status;
  if (Status status = read_token_ids(file, batch); !status.ok()) return status;
  return batch;
}

// The tensors that can run, by layer; the others go to `skipped` with the reason.
std::map<int32_t, std::vector<Checkpoint::Tensor>> sort_tensors(const TensorFile& file,
                                                                const LayerRunner& runner,
                                                                std::vector<std::string>& skipped) {
  std::map<int32_t, std::vector<Checkpoint::Tensor>> by_layer;
  for (const Checkpoint::Tensor& tensor : file.tensors()) {
    std::string reason = "not named layers.{i}.{name}";
    if (const int32_t layer = layer_of(tensor.name); layer >= 0) {
      const Result<LayerSpec> spec = runner.spec(layer);
      reason = spec.ok() ? misfit(tensor, *spec) : std::string(spec.status().message());
      if (reason.empty()) by_layer[layer].push_back(tensor);
    }
    if (!reason.empty()) skipped.push_back(fmt::format("{}: {}", tensor.name, reason));
  }
  return by_layer;
}

void add_results(Batch& batch, std::vector<NamedTensor>& out) {
  const Dims chosen = {batch.rows, batch.top_k};
  out.push_back({batch.name, batch.out_view()});
  out.push_back({batch.name + ".topk_ids", {batch.ids_64.data(), DType::i64, chosen}});
  out.push_back({batch.name + ".topk_weights", {batch.weights.data(), DType::f32, chosen}});
}

void print(const std::vector<std::pair<int32_t, Batch>>& batches,
           const std::vector<std::pair<int32_t, ExpertStoreStats>>& stores,
           const RunOptions& options, const std::vector<std::string>& skipped) {
  if (!options.json) {
    for (const auto& [layer, batch] : batches)
      fmt::print("{}: {} rows through layer {}\n", batch.name, batch.rows, layer);
    return;
  }
  Json json;
  json.value("checkpoint", options.checkpoint).value("output", options.output).array("tensors");
  for (const auto& [layer, batch] : batches) {
    const ForwardReport& report = batch.report;
    json.object().value("name", batch.name).value("layer", layer).value("rows", batch.rows);
    json.value("dtype", to_string(batch.dtype)).value("nonfinite_rows", report.nonfinite_rows);
    json.value("short_rows", report.short_rows).value("dropped", report.dropped).end();
  }
  json.end().array("layers");
  for (const auto& [layer, stats] : stores) {
    json.object().value("layer", layer);
    add_paging(json, stats, options);
    json.end();
  }
  json.end().array("skipped");
  for (const std::string& line : skipped) json.element(line);
  json.print();
}

}  // namespace

Status run_file(const Checkpoint& checkpoint, const RunOptions& options) {
  const Result<TensorFile> file = TensorFile::open(options.input);
  if (!file.ok()) return file.status();
  const LayerRunner runner(checkpoint, options);
  std::vector<std::string> skipped;
  const auto by_layer = sort_tensors(*file, runner, skipped);
  for (const std::string& line : skipped) print_note("skipped " + line);
  if (by_layer.empty())
    return Status(StatusCode::invalid_argument,
                  "no tensor to run; wanted layers.{i}.{name} of shape (rows, hidden)",
                  {.file = options.input});

  Result<Recorder> recorder = Recorder::create(options, checkpoint.layers());
  if (!recorder.ok()) return recorder.status();

  std::vector<std::pair<int32_t, Batch>> batches;
  std::vector<std::pair<int32_t, ExpertStoreStats>> stores;
  for (const auto& [layer, tensors] : by_layer) {
    const Result<LayerSpec> spec = runner.spec(layer);
    Result<Model> model = runner.load(layer);
    if (!model.ok()) return model.status();
    int64_t step = 0;
    for (const Checkpoint::Tensor& tensor : tensors) {
      Result<Batch> batch = read_batch(*file, tensor);
      if (!batch.ok()) return batch.status().at({.file = options.input, .tensor = tensor.name});
      if (Status status = forward(*model, *spec, *batch); !status.ok())
        return status.at({.tensor = tensor.name, .layer = layer});
      if (Status status = recorder->add(*spec, step++, *batch); !status.ok()) return status;
      batches.emplace_back(layer, *std::move(batch));
    }
    stores.emplace_back(layer, model->store().stats());
  }

  std::vector<NamedTensor> results;
  for (auto& [layer, batch] : batches) add_results(batch, results);
  if (Status status = write_safetensors(options.output, results); !status.ok()) return status;
  if (Status status = recorder->finish(); !status.ok()) return status;
  print(batches, stores, options, skipped);
  return {};
}

}  // namespace moe::cli
