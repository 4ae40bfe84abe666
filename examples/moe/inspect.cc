// moe inspect: what a checkpoint holds, and what would run it.
#include <algorithm>
#include <memory>
#include <vector>

#include <fmt/format.h>

#include "commands.h"
#include "json.h"
#include "moe/checkpoint.h"
#include "moe/expert_gemm.h"
#include "names.h"
#include "terminal.h"

namespace moe::cli {
namespace {

const char* name_of(Scoring scoring) {
  switch (scoring) {
    case Scoring::softmax: return "softmax";
    case Scoring::sigmoid: return "sigmoid";
    case Scoring::sqrt_softplus: return "sqrt_softplus";
    case Scoring::identity: return "identity";
  }
  return "?";
}

const char* name_of(Selection selection) {
  switch (selection) {
    case Selection::top_k: return "top_k";
    case Selection::sparsemixer: return "sparsemixer";
    case Selection::token_lookup: return "token_lookup";
  }
  return "?";
}

const char* name_of(Weighting weighting) {
  switch (weighting) {
    case Weighting::score: return "score";
    case Weighting::softmax_of_selected_logits: return "softmax_of_selected_logits";
    case Weighting::sigmoid_of_logit: return "sigmoid_of_logit";
  }
  return "?";
}

// Weights of one expert, as stored.
int64_t expert_bytes(const WeightSource& source, const LayerSpec& spec) {
  int64_t bytes = 0;
  for (int kind = static_cast<int>(WeightKind::gate);
       kind <= static_cast<int>(WeightKind::down_group); ++kind) {
    const Result<TensorShape> shape =
        source.describe({spec.layer, static_cast<WeightKind>(kind), 0});
    if (shape.ok()) bytes += (shape->shape.elements() * bits_of(shape->dtype) + 7) / 8;
  }
  return bytes;
}

// One row of the table of backends, asked about one layer.
struct Candidate {
  const ExpertGemmRow* row;
  Status fits;
};

std::vector<Candidate> candidates(const ExpertSpec& spec) {
  std::vector<Candidate> out;
  for (const ExpertGemmRow& row : expert_gemm_rows()) {
    Status fits = row.available();
    if (fits.ok()) fits = row.make({})->supports(spec);
    out.push_back({&row, std::move(fits)});
  }
  return out;
}

std::string rule(const RouterSpec& router) {
  std::string text =
      fmt::format("top {} of {}, {}", router.top_k, router.num_experts, name_of(router.scoring));
  if (router.selection != Selection::top_k) text += fmt::format(", {}", name_of(router.selection));
  if (router.weighting != Weighting::score) text += fmt::format(", {}", name_of(router.weighting));
  if (router.num_groups > 1)
    text += fmt::format(", {} of {} groups", router.top_groups, router.num_groups);
  if (router.normalize != Normalize::none) text += ", renormalised";
  if (router.scaling != 1) text += fmt::format(", times {}", router.scaling);
  if (router.num_zero_experts > 0)
    text += fmt::format(", {} zero experts", router.num_zero_experts);
  if (router.softcap > 0) text += fmt::format(", softcap {}", router.softcap);
  if (router.capacity > 0) text += fmt::format(", capacity {}", router.capacity);
  if (router.weight_on_input) text += ", weight on the input";
  return text;
}

// "int4 in groups of 128 with zero points"
std::string format_text(const Format& format) {
  std::string text = to_string(format.kind);
  if (format.group > 0) text += fmt::format(" in groups of {}", format.group);
  if (format.zero_points) text += " with zero points";
  if (format.act_order) text += " in act-order";
  return text;
}

void write_layer(Json& json, const Checkpoint& checkpoint, const LayerSpec& layer) {
  const RouterSpec& router = layer.router;
  const ExpertSpec& expert = layer.expert;
  json.object().value("layer", layer.layer).value("hidden", expert.hidden);
  json.value("intermediate", expert.intermediate).value("experts", router.num_experts);
  json.value("zero_experts", router.num_zero_experts).value("top_k", router.top_k);
  json.value("scoring", name_of(router.scoring)).value("selection", name_of(router.selection));
  json.value("weighting", name_of(router.weighting)).value("router", rule(router));
  json.value("activation", to_string(expert.activation)).value("gated", expert.gated);
  json.value("bias", expert.bias).value("dtype", to_string(expert.format.kind));
  json.value("group", expert.format.group);
  json.value("zero_points", expert.format.zero_points).value("act_order", expert.format.act_order);
  json.value("shared_dtype", layer.shared ? to_string(layer.shared->expert.format.kind) : "");
  json.value("expert_bytes", expert_bytes(checkpoint, layer));
  json.value("shared_intermediate", layer.shared ? layer.shared->expert.intermediate : 0);
  json.array("backends");
  for (const Candidate& c : candidates(expert))
    json.object()
        .value("name", c.row->name)
        .value("fits", c.fits.ok())
        .value("reason", c.fits.message())
        .end();
  json.end().end();
}

void print_json(const Checkpoint& checkpoint) {
  Json json;
  json.value("directory", checkpoint.directory()).value("family", checkpoint.family());
  json.value("tensors", checkpoint.tensors().size()).value("bytes", checkpoint.parameter_bytes());
  json.array("layers");
  for (const LayerSpec& layer : checkpoint.layers()) write_layer(json, checkpoint, layer);
  json.print();
}

// What a line of the table says, but for the layer's index.
std::string summary(const Checkpoint& checkpoint, const LayerSpec& layer) {
  const ExpertSpec& expert = layer.expert;
  std::string text = fmt::format("hidden {}, intermediate {}, {}, {}{}{} per expert\n    {}",
                                 expert.hidden, expert.intermediate, to_string(expert.activation),
                                 format_text(expert.format), expert.bias ? " with bias, " : ", ",
                                 human_bytes(static_cast<double>(expert_bytes(checkpoint, layer))),
                                 rule(layer.router));
  if (layer.shared)
    text += fmt::format("\n    shared expert: intermediate {}, {}{}",
                        layer.shared->expert.intermediate, format_text(layer.shared->expert.format),
                        layer.shared->sigmoid_gate ? ", sigmoid gate" : "");
  return text;
}

void print_text(const Checkpoint& checkpoint) {
  fmt::print("{}\n  family {}, {} tensors, {}\n", checkpoint.directory(), checkpoint.family(),
             checkpoint.tensors().size(),
             human_bytes(static_cast<double>(checkpoint.parameter_bytes())));
  const std::vector<LayerSpec>& layers = checkpoint.layers();
  for (size_t first = 0; first < layers.size();) {  // equal neighbours share a line
    const std::string text = summary(checkpoint, layers[first]);
    size_t last = first;
    while (last + 1 < layers.size() && summary(checkpoint, layers[last + 1]) == text) ++last;
    fmt::print("  layers {}..{}: {}\n", layers[first].layer, layers[last].layer, text);
    for (const Candidate& c : candidates(layers[first].expert))
      fmt::print("    backend {:<16}{}\n", c.row->name, c.fits.ok() ? "fits" : c.fits.message());
    first = last + 1;
  }
  if (layers.empty()) fmt::print("  no MoE layers\n");
}

}  // namespace

void add_inspect(CLI::App& app, Global& global) {
  CLI::App* command =
      app.add_subcommand("inspect", "What a checkpoint holds and what would run it");
  auto directory = std::make_shared<std::string>();
  command->add_option("CHECKPOINT", *directory, "Hugging Face folder")->required();
  add_json(*command, global);
  command->callback([directory, &global] {
    const Result<Checkpoint> checkpoint = Checkpoint::open(*directory);
    if (!checkpoint.ok()) {
      global.status = checkpoint.status();
      return;
    }
    global.json ? print_json(*checkpoint) : print_text(*checkpoint);
  });
}

}  // namespace moe::cli
