// moe repack: the same model, each expert in one aligned piece, with digests.
#include <memory>

#include <fmt/format.h>

#include "commands.h"
#include "json.h"
#include "moe/checkpoint.h"
#include "terminal.h"

namespace moe::cli {
namespace {

struct Options {
  std::string from, to;
};

Status run(const Options& options, bool as_json) {
  {
    ProgressBar bar("repacking");
    if (Status status = repack(options.from, options.to, ProgressBar::update, &bar); !status.ok())
      return status;
  }
  const Result<Checkpoint> checkpoint = Checkpoint::open(options.to);
  if (!checkpoint.ok()) return checkpoint.status();
  const auto layers = static_cast<int64_t>(checkpoint->layers().size());
  if (as_json) {
    Json json;
    json.value("directory", options.to).value("family", checkpoint->family());
    json.value("layers", layers).value("bytes", checkpoint->parameter_bytes()).print();
  } else {
    fmt::print("{}: {}, {} MoE layers, {}\n", options.to, checkpoint->family(), layers,
               human_bytes(static_cast<double>(checkpoint->parameter_bytes())));
  }
  return {};
}

}  // namespace

void add_repack(CLI::App& app, Global& global) {
  CLI::App* command =
      app.add_subcommand("repack", "Copy a model so that each expert is read in one piece");
  auto options = std::make_shared<Options>();
  command->add_option("IN", options->from, "Hugging Face folder; it is not touched")->required();
  command->add_option("OUT", options->to, "New folder; complete or absent afterwards")->required();
  add_json(*command, global);
  command->footer("Example: moe repack /models/OLMoE-1B-7B /models/OLMoE-1B-7B-repacked");
  command->callback([options, &global] { global.status = run(*options, global.json); });
}

}  // namespace moe::cli
