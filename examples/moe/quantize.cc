// moe quantize: the same model with its experts in int4 or int8, and what that costs.
#include "moe/quantize.h"

#include <algorithm>
#include <memory>

#include <fmt/format.h>

#include "commands.h"
#include "json.h"
#include "moe/checkpoint.h"
#include "terminal.h"

namespace moe::cli {
namespace {

struct Options {
  std::string from, to, format = "int4";
  int32_t group = -1;
};

struct Summary {
  double mean = 0, most = 0;
};

Summary summary(const LayerErrors& layer, double ExpertError::*error) {
  Summary sum;
  for (const ExpertError& expert : layer.experts) {
    sum.mean += expert.*error / static_cast<double>(layer.experts.size());
    sum.most = std::max(sum.most, expert.*error);
  }
  return sum;
}

void print_json(const Options& options, const QuantizeOptions& made, int64_t bytes,
                const std::vector<LayerErrors>& layers) {
  Json json;
  json.value("directory", options.to).value("format", options.format);
  json.value("group", made.group).value("bytes", bytes).array("layers");
  for (const LayerErrors& layer : layers) {
    json.object().value("layer", layer.layer).array("experts");
    for (const ExpertError& expert : layer.experts)
      json.object()
          .value("expert", expert.expert)
          .value("weight_error", expert.weights)
          .value("output_error", expert.outputs)
          .end();
    json.end().end();
  }
  json.end().print();
}

void print_table(const std::vector<LayerErrors>& layers) {
  fmt::print("{:>5} {:>7} {:>12} {:>12} {:>12} {:>12}\n", "layer", "experts", "weights mean", "max",
             "outputs mean", "max");
  for (const LayerErrors& layer : layers) {
    const Summary weights = summary(layer, &ExpertError::weights);
    const Summary outputs = summary(layer, &ExpertError::outputs);
    fmt::print("{:>5} {:>7} {:>12.2e} {:>12.2e} {:>12.2e} {:>12.2e}\n", layer.layer,
               layer.experts.size(), weights.mean, weights.most, outputs.mean, outputs.most);
  }
}

Status run(const Options& options, bool as_json) {
  QuantizeOptions made;
  made.format = options.format == "int8" ? FormatKind::int8 : FormatKind::int4;
  made.group = options.group >= 0 ? options.group : made.format == FormatKind::int4 ? 128 : 0;
  ProgressBar bar("quantising");
  const auto layers = quantize(options.from, options.to, made, ProgressBar::update, &bar);
  if (!layers.ok()) return layers.status();
  const Result<Checkpoint> checkpoint = Checkpoint::open(options.to);
  if (!checkpoint.ok()) return checkpoint.status();
  if (as_json) {
    print_json(options, made, checkpoint->parameter_bytes(), *layers);
  } else {
    fmt::print("{}: {}, {}\n", options.to, checkpoint->family(),
               human_bytes(static_cast<double>(checkpoint->parameter_bytes())));
    print_table(*layers);
  }
  return {};
}

}  // namespace

void add_quantize(CLI::App& app, Global& global) {
  CLI::App* command =
      app.add_subcommand("quantize", "Write a model with its experts in int4 or int8");
  auto options = std::make_shared<Options>();
  command->add_option("IN", options->from, "Hugging Face folder; it is not touched")->required();
  command->add_option("OUT", options->to, "New folder; complete or absent afterwards")->required();
  command->add_option("--format", options->format, "int8 or int4")
      ->check(CLI::IsMember({"int8", "int4"}))
      ->capture_default_str();
  command
      ->add_option("--group", options->group,
                   "Inputs that share a scale, a multiple of 32; 0: a whole row. Default: 128 for "
                   "int4, 0 for int8")
      ->check(CLI::Range(0, 1 << 20));
  add_json(*command, global);
  command->footer(
      "Example: moe quantize /models/OLMoE-1B-7B /models/OLMoE-1B-7B-int4 --format int4");
  command->callback([options, &global] { global.status = run(*options, global.json); });
}

}  // namespace moe::cli
