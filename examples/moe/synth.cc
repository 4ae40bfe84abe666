// moe synth: writes a synthetic checkpoint, so that nothing needs to be downloaded.
#include <memory>

#include <fmt/format.h>

#include "commands.h"
#include "json.h"
#include "moe/checkpoint.h"
#include "spec.h"
#include "terminal.h"

namespace moe::cli {
namespace {

struct Options {
  std::string directory;
  SpecOptions spec;
};

Status synth(const Options& options, bool as_json) {
  const SyntheticSpec spec = make_spec(options.spec);
  {
    ProgressBar bar("writing");
    if (Status status = write_synthetic(spec, options.directory, ProgressBar::update, &bar);
        !status.ok())
      return status;
  }
  const Result<Checkpoint> checkpoint = Checkpoint::open(options.directory);
  if (!checkpoint.ok()) return checkpoint.status();

  const auto layers = static_cast<int64_t>(checkpoint->layers().size());
  if (as_json) {
    Json json;
    json.value("directory", options.directory).value("family", spec.family);
    json.value("layers", layers).value("bytes", checkpoint->parameter_bytes()).print();
  } else {
    fmt::print("{}: {}, {} MoE layers of {} experts, {}\n", options.directory, spec.family, layers,
               spec.experts, human_bytes(static_cast<double>(checkpoint->parameter_bytes())));
  }
  return {};
}

}  // namespace

void add_synth(CLI::App& app, Global& global) {
  CLI::App* command = app.add_subcommand("synth", "Write a synthetic checkpoint of any shape");
  auto options = std::make_shared<Options>();
  command->add_option("OUT", options->directory, "Folder to write, must not be a checkpoint yet")
      ->required();
  add_spec_options(*command, options->spec);
  add_json(*command, global);
  command->footer("Example: moe synth /tmp/olmoe --like olmoe-1b-7b --layers 2 --experts 8");
  command->callback([options, &global] { global.status = synth(*options, global.json); });
}

}  // namespace moe::cli
