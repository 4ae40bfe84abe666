// moe run: the MoE layers of a checkpoint, on rows from a file or on rows of its own.
#include "run.h"

#include <algorithm>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "commands.h"
#include "names.h"
#include "terminal.h"

namespace moe::cli {
namespace {

Status run(const RunOptions& options) {
  if (options.input.empty() != options.output.empty())
    wrong_usage("--input and --output go together");
  parse_device(options.device);
  std::vector<std::string> known;
  for (const EvictionPolicyRow& row : eviction_policy_rows()) known.push_back(row.name);
  if (!options.policy.empty() &&
      std::find(known.begin(), known.end(), options.policy) == known.end())
    wrong_usage("--policy: no policy is called '" + options.policy + "'." +
                did_you_mean(options.policy, known));
  const Result<Checkpoint> checkpoint = Checkpoint::open(options.checkpoint);
  if (!checkpoint.ok()) return checkpoint.status();
  return options.input.empty() ? run_report(*checkpoint, options) : run_file(*checkpoint, options);
}

}  // namespace

LayerRunner::LayerRunner(const Checkpoint& checkpoint, const RunOptions& options)
    : checkpoint_(checkpoint),
      device_(parse_device(options.device)),
      gemm_(options.gemm),
      gemm_options_{parse_rows(options.row_precision)},
      expert_memory_(options.expert_memory),
      policy_(options.policy) {
  if (options.threads == 0) return;
  if (auto executor = make_executor(options.threads); executor.ok())
    executor_ = std::move(*executor);
}

Result<LayerSpec> LayerRunner::spec(int32_t layer) const {
  std::string known;
  for (const LayerSpec& spec : checkpoint_.layers()) {
    if (spec.layer == layer) return spec;
    known += fmt::format(" {}", spec.layer);
  }
  return Status(StatusCode::not_found,
                fmt::format("layer {} is not an MoE layer; those are:{}", layer, known));
}

Result<Model> LayerRunner::load(int32_t layer) const {
  ProgressBar bar(fmt::format("loading layer {}", layer));
  return Model::create(checkpoint_, {.device = device_,
                                     .expert_memory = expert_memory_,
                                     .eviction = policy_,
                                     .layers = {layer},
                                     .gemm = gemm_,
                                     .gemm_options = gemm_options_,
                                     .host = {.executor = executor_.get()},
                                     .progress = ProgressBar::update,
                                     .progress_argument = &bar});
}

// CPU: fp32 sums in another order, or what the backend says of itself. GPU: rows and results of the
// experts are bf16, those of fp8 experts may be e4m3.
double LayerRunner::tolerance(const ExpertSpec& spec) const {
  if (device_.kind != DeviceKind::cpu)
    return spec.format.kind == FormatKind::fp8_block && gemm_options_.rows != RowPrecision::exact
               ? 7e-2
               : 1e-2;
  const auto gemm = make_expert_gemm(device_, spec, gemm_, gemm_options_);
  return gemm.ok() ? std::max(1e-5, (*gemm)->error_bound(spec, DType::f32)) : 1e-5;
}

double LayerRunner::tolerance(const LayerSpec& spec) const {
  const double routed = tolerance(spec.expert);
  return spec.shared ? std::max(routed, tolerance(spec.shared->expert)) : routed;
}

void add_paging(Json& json, const ExpertStoreStats& stats, const RunOptions& options) {
  if (options.expert_memory == 0) return;
  const PagingStats& paging = stats.paging;
  json.object("paging");
  json.value("policy", options.policy.empty() ? eviction_policy_rows()[0].name : options.policy);
  json.value("slots", stats.capacity).value("hits", paging.hits).value("misses", paging.misses);
  json.value("evictions", paging.evictions).value("waves", paging.waves);
  json.value("bytes", paging.bytes_loaded);
  json.value("stall_us", static_cast<double>(paging.stall_ns) / 1e3).end();
}

Result<Recorder> Recorder::create(const RunOptions& options, const std::vector<LayerSpec>& layers) {
  Recorder recorder;
  std::vector<LayerExperts> recorded;
  int32_t top_k = 1;
  for (const LayerSpec& spec : layers) {
    recorded.push_back({spec.layer, spec.router.num_experts});
    top_k = std::max(top_k, spec.router.top_k);
  }
  if (!options.record_trace.empty()) {
    Result<TraceWriter> writer = TraceWriter::create(options.record_trace, recorded, top_k);
    if (!writer.ok()) return writer.status();
    recorder.trace_ = std::move(*writer);
  }
  if (!options.record_usage.empty()) {
    Result<NewFile> file = NewFile::create(options.record_usage);
    if (!file.ok()) return file.status();
    Result<UsageWindow> window = UsageWindow::create(recorded, top_k, {.keep_steps = true});
    if (!window.ok()) return window.status();
    recorder.usage_ = std::move(*window);
    recorder.usage_file_.emplace(std::move(*file));
  }
  return recorder;
}

Status Recorder::add(const LayerSpec& layer, int64_t step, const Batch& batch) {
  if (usage_)
    if (Status status = usage_->record(layer.layer, batch.ids, batch.top_k); !status.ok())
      return status;
  if (!trace_) return {};
  std::vector<int32_t> ids = batch.ids;
  std::vector<float> weights = batch.weights;
  for (int32_t& id : ids)
    if (id >= layer.router.num_experts) id = -1;
  return trace_->append({.step = step, .layer = layer.layer},
                        {batch.rows, batch.top_k, ids.data(), weights.data()});
}

Status Recorder::finish() {
  if (usage_) {
    if (Status status = usage_file_->write(write_usage(usage_->snapshot())); !status.ok())
      return status;
    if (Status status = usage_file_->commit(); !status.ok()) return status;
  }
  return trace_ ? trace_->finish() : Status();
}

void add_run(CLI::App& app, Global& global) {
  CLI::App* command = app.add_subcommand(
      "run", "Run the MoE layers of a checkpoint; without --input, on rows of its own, checked");
  auto options = std::make_shared<RunOptions>();
  command->add_option("CHECKPOINT", options->checkpoint, "Hugging Face folder")->required();
  command->add_option("--input", options->input,
                      "Safetensors file; layers.{i}.{name} goes through layer i");
  command->add_option("--output", options->output, "Safetensors file to write");
  command->add_option("--device", options->device, "cpu or cuda:N")->capture_default_str();
  command->add_option("--backend", options->gemm, "Expert backend to force; see moe info");
  command
      ->add_option("--row-precision", options->row_precision,
                   "Least exact rows that meet the weights: exact is f32 (GPU: bf16)")
      ->check(CLI::IsMember(row_precisions()))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "0: one per core")
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--expert-memory", options->expert_memory,
                   "Bytes for experts (4GiB); with fewer than a layer's, they are paged in. 0: all")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--policy", options->policy,
                      "With --expert-memory: who makes room; see moe simulate --help");
  command->add_option("--record-trace", options->record_trace,
                      "CSV file to write: which experts each row chose, for moe simulate and plan");
  command->add_option("--record-usage", options->record_usage,
                      "JSON file to write: how often experts, and sets of them, were chosen in "
                      "the last 1,000 forwards of each layer, for moe plan");
  command->add_option("--rows", options->rows, "Without --input: rows per layer")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Without --input: other seed, other rows");
  command->add_option("--layer", options->layers, "Without --input: these layers only")
      ->delimiter(',');
  add_json(*command, global);
  command->footer(
      "Example: moe run /tmp/olmoe\n"
      "         moe run /tmp/olmoe --input in.safetensors --output out.safetensors");
  command->callback([options, &global] {
    options->json = global.json;
    global.status = run(*options);
  });
}

}  // namespace moe::cli
