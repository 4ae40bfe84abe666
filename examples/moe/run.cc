// moe run: the MoE layers of a checkpoint, on rows from a file or on rows of its own.
#include "run.h"

#include <memory>

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
  const Result<Checkpoint> checkpoint = Checkpoint::open(options.checkpoint);
  if (!checkpoint.ok()) return checkpoint.status();
  return options.input.empty() ? run_report(*checkpoint, options) : run_file(*checkpoint, options);
}

}  // namespace

LayerRunner::LayerRunner(const Checkpoint& checkpoint, const RunOptions& options)
    : checkpoint_(checkpoint),
      device_(parse_device(options.device)),
      gemm_(options.gemm),
      expert_memory_(options.expert_memory) {
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
                                     .layers = {layer},
                                     .gemm = gemm_,
                                     .host = {.executor = executor_.get()},
                                     .progress = ProgressBar::update,
                                     .progress_argument = &bar});
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
  command->add_option("--threads", options->threads, "0: one per core")
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--expert-memory", options->expert_memory,
                   "Bytes for experts (4GiB); with fewer than a layer's, they are paged in. 0: all")
      ->transform(CLI::AsSizeValue(false));
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
